// helium.h on top of the library: pointers checked, exceptions turned into codes and messages.
#include <mlx/version.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <random>
#include <string>

#include "error.h"
#include "helium.h"
#include "model.h"
#include "utf8.h"

struct helium_cancellation {
  std::atomic<bool> is_set = false;
  static_assert(std::atomic<bool>::is_always_lock_free, "helium_cancel is for signal handlers too");
};

struct helium_model {
  helium::Model model;
};

namespace {

thread_local std::string last_message;

helium_status fail(helium_status status, const char* message) {
  try {
    // MLX's own may have several lines, and paths any bytes.
    last_message = helium::one_line(message);
  } catch (const std::bad_alloc&) {
    last_message.clear();
  }
  return status;
}

// Run a function, whose exceptions end here.
template <typename Function>
helium_status guarded(const Function& function) {
  last_message.clear();
  try {
    function();
    return HELIUM_OK;
  } catch (const helium::Error& error) {
    return fail(error.status, error.what());
  } catch (const std::bad_alloc&) {
    return fail(HELIUM_ERROR_RUNTIME, "there is not enough memory; close something, or take a smaller bundle");
  } catch (const std::exception& error) {
    return fail(HELIUM_ERROR_RUNTIME, error.what());
  } catch (...) {
    return fail(HELIUM_ERROR_RUNTIME, "an unknown error");
  }
}

void require(bool given, const char* name) {
  if (!given) throw helium::Error(HELIUM_ERROR_ARGUMENT, std::string(name) + " is NULL; it is needed");
}

bool is_cancelled(const helium_cancellation* cancellation) {
  return cancellation != nullptr && cancellation->is_set;
}

std::uint64_t random_seed() {
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

helium::GenerationOptions converted(const helium_options& options) {
  helium::GenerationOptions converted;
  converted.max_tokens = options.max_tokens;
  converted.sampling = {options.temperature, options.top_p, options.top_k, options.min_p,
                        options.has_seed ? options.seed : random_seed()};
  converted.ignore_eos = options.ignore_eos;
  require(options.stop != nullptr || options.stop_count == 0, "stop");
  for (std::size_t i = 0; i < options.stop_count; ++i) {
    require(options.stop[i] != nullptr, "a stop string");
    converted.stops.emplace_back(options.stop[i]);
  }
  return converted;
}

}  // namespace

const char* helium_error_message(void) {
  return last_message.c_str();
}

const char* helium_mlx_version(void) {
  return mlx::core::version();
}

helium_status helium_open(const char* bundle, helium_verification verification, helium_model** model) {
  return guarded([&] {
    require(model != nullptr, "model");
    *model = nullptr;
    require(bundle != nullptr, "bundle");
    if (*bundle == '\0') {
      throw helium::Error(HELIUM_ERROR_ARGUMENT, "bundle is empty; name the directory that helium_mlx.export wrote");
    }
    *model = new helium_model{{bundle, verification}};
  });
}

void helium_close(helium_model* model) {
  if (model != nullptr) model->model.close([model] { delete model; });
}

helium_info helium_get_info(const helium_model* model) {
  const helium::Manifest& manifest = model->model.manifest();
  return {manifest.context,
          manifest.model.vocab_size,
          manifest.model.num_hidden_layers,
          manifest.model.bits_per_weight,
          manifest.model.model_type.c_str(),
          manifest.backend.c_str(),
          manifest.mlx_version.c_str()};
}

helium_options helium_default_options(const helium_model* model) {
  const helium::Manifest& manifest = model->model.manifest();
  helium_options options{};
  options.max_tokens = manifest.max_tokens;
  options.temperature = manifest.sampling.temperature;
  options.top_p = manifest.sampling.top_p;
  options.top_k = manifest.sampling.top_k;
  options.min_p = manifest.sampling.min_p;
  return options;
}

helium_status helium_tokenize(const helium_model* model, const char* text, int32_t* ids, size_t capacity,
                              size_t* count) {
  return guarded([&] {
    require(model != nullptr, "model");
    require(text != nullptr, "text");
    require(count != nullptr, "count");
    require(ids != nullptr || capacity == 0, "ids");
    const std::vector<std::int32_t> tokens = model->model.tokenizer().encode(text);
    std::copy_n(tokens.begin(), std::min(tokens.size(), capacity), ids);
    *count = tokens.size();
  });
}

helium_status helium_generate(helium_model* model, const char* prompt, const helium_options* options,
                              helium_on_chunk on_chunk, helium_on_progress on_progress, void* context,
                              helium_statistics* statistics) {
  return guarded([&] {
    require(model != nullptr, "model");
    require(prompt != nullptr, "prompt");
    const helium_options chosen = options != nullptr ? *options : helium_default_options(model);
    helium::Listener listener;
    listener.may_go_on = [&] { return !is_cancelled(chosen.cancellation); };
    listener.on_progress = [&](std::int32_t done, std::int32_t total) {
      return on_progress == nullptr || on_progress(context, done, total);
    };
    listener.on_chunk = [&](const helium_chunk& chunk) { return on_chunk == nullptr || on_chunk(context, &chunk); };
    const helium_statistics result = model->model.generate(prompt, converted(chosen), std::move(listener));
    if (statistics != nullptr) *statistics = result;
  });
}

helium_status helium_check(helium_model* model, const helium_cancellation* cancellation, helium_check_report* report) {
  return guarded([&] {
    require(model != nullptr, "model");
    const helium_check_report result = model->model.check([&] { return !is_cancelled(cancellation); });
    if (report != nullptr) *report = result;
  });
}

helium_cancellation* helium_cancellation_new(void) {
  return new (std::nothrow) helium_cancellation;
}

void helium_cancel(helium_cancellation* cancellation) {
  if (cancellation != nullptr) cancellation->is_set = true;
}

void helium_cancellation_free(helium_cancellation* cancellation) {
  delete cancellation;
}
