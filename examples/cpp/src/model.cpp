#include "model.h"

#include <mlx/memory.h>
#include <mlx/stream.h>

#include <utility>

#include "check.h"
#include "error.h"

namespace helium {

Model::Model(const std::filesystem::path& directory, helium_verification verification) : worker_(Worker::shared()) {
  worker_.run([&] { bundle_ = std::make_unique<Bundle>(directory, verification); });
  manifest_ = bundle_->shared_manifest();
  tokenizer_ = bundle_->tokenizer();
}

Model::~Model() {
  bundle_.reset();
  mlx::core::synchronize();
  mlx::core::clear_cache();
}

void Model::close(const std::function<void()>& destroy) {
  closing_ = true;
  if (worker_.is_current()) return worker_.leave_over(destroy);
  worker_.run(destroy);
}

helium_statistics Model::generate(const std::string& prompt, const GenerationOptions& options, Listener listener) {
  helium::check(options);
  const std::vector<std::int32_t> tokens = tokenizer_->encode(prompt);
  listener.may_go_on = [this, asked = std::move(listener.may_go_on)] { return !closing_ && asked(); };
  return worker_.run([&] { return helium::generate(*bundle_, tokens, options, listener); });
}

helium_check_report Model::check(const std::function<bool()>& may_go_on) {
  return worker_.run([&] { return check_vectors(*bundle_, [&] { return !closing_ && may_go_on(); }); });
}

}  // namespace helium
