#include "bundle.h"

#include <mlx/backend/metal/metal.h>
#include <mlx/compile.h>
#include <mlx/device.h>
#include <mlx/io.h>
#include <mlx/transforms.h>
#include <mlx/version.h>

#include <algorithm>
#include <new>
#include <sstream>
#include <utility>

#include "error.h"
#include "files.h"
#include "utf8.h"

namespace helium {
namespace {

namespace mx = mlx::core;

// A bundle of the 2B preview has a manifest of half a megabyte.
constexpr std::uint64_t kMostManifestBytes = 8'000'000;

const std::pair<const char*, mx::Dtype> kDtypes[] = {
    {"float32", mx::float32}, {"float16", mx::float16}, {"bfloat16", mx::bfloat16},
    {"uint32", mx::uint32},   {"uint8", mx::uint8},
};

mx::Dtype dtype_of(const std::string& name) {
  for (const auto& [known, dtype] : kDtypes) {
    if (name == known) return dtype;
  }
  throw Error(HELIUM_ERROR_BUNDLE, "manifest.json names the dtype " + shown(name) + ", which this program lacks");
}

Manifest read_manifest(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "manifest.json";
  return Manifest::parse(read_file(path, kMostManifestBytes), path.string(), mx::version(), backend_here());
}

void verify(const std::filesystem::path& directory, const Manifest& manifest, helium_verification verification) {
  for (const auto& [name, file] : manifest.files) check_size(directory / name, file.bytes);
  const auto& weights = manifest.weight_files;
  for (const auto& [name, file] : manifest.files) {
    const bool is_weights = std::find(weights.begin(), weights.end(), name) != weights.end();
    const bool is_trusted = is_weights && verification == HELIUM_VERIFY_ALL_BUT_WEIGHTS;
    if (!is_trusted) check_sha256(directory / name, file.sha256);
  }
}

std::string described(const mx::Dtype& dtype, const mx::Shape& shape) {
  std::ostringstream stream;
  stream << dtype << " " << shape;
  return stream.str();
}

}  // namespace

std::string backend_here() {
  if (mx::default_device() == mx::Device::cpu) return "cpu";
  return mx::metal::is_available() ? "metal" : "cuda";
}

Bundle::Bundle(const std::filesystem::path& directory, helium_verification verification)
    : directory_(directory),
      manifest_(std::make_shared<const Manifest>(read_manifest(directory))),
      dtype_(dtype_of(manifest_->dtype)) {
  verify(directory_, *manifest_, verification);
  tokenizer_ = std::make_shared<const Tokenizer>(*manifest_, path_of(manifest_->tokenizer.model_file));
  load_weights();
}

void Bundle::load_weights() {
  std::unordered_map<std::string, mx::array> tensors;
  for (const std::string& name : manifest_->weight_files) {
    try {
      tensors.merge(mx::load_safetensors(path_of(name).string()).first);
    } catch (const std::exception& error) {
      throw Error(HELIUM_ERROR_BUNDLE,
                  path_of(name).string() + " is not a safetensors file (" + error.what() + "); export the bundle anew");
    }
  }
  for (const TensorSpec& spec : manifest_->weights) {
    const auto found = tensors.find(spec.name);
    if (found == tensors.end()) {
      throw Error(HELIUM_ERROR_BUNDLE,
                  directory_.string() + " lacks the tensor " + shown(spec.name) + "; export the bundle anew");
    }
    const mx::array& tensor = found->second;
    const mx::Shape shape(spec.shape.begin(), spec.shape.end());
    if (tensor.shape() != shape || tensor.dtype() != dtype_of(spec.dtype)) {
      throw Error(HELIUM_ERROR_BUNDLE, directory_.string() + " has the tensor " + shown(spec.name) + " as " +
                                           described(tensor.dtype(), tensor.shape()) +
                                           ", unlike the manifest; export the bundle anew");
    }
    weights_.push_back(tensor);
  }
  mx::eval(weights_);
}

mx::Shape Bundle::cache_shape(std::int32_t capacity) const {
  return {2, manifest_->model.num_key_value_heads, capacity, manifest_->model.head_dim};
}

const FunctionSpec& Bundle::function_for(std::int32_t length, std::int32_t filled) const {
  const FunctionSpec* best = nullptr;
  for (const FunctionSpec& function : manifest_->functions) {
    if (function.length != length || function.attended < filled) continue;
    if (best == nullptr || function.attended < best->attended) best = &function;
  }
  return *best;
}

std::vector<mx::array> Bundle::call(const FunctionSpec& spec, const mx::Args& arguments) {
  std::vector<mx::array> outputs;
  std::string fault;
  try {
    outputs = function(spec.file)(arguments);
    fault = fault_of(outputs, spec.capacity);
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    fault = "cannot be run: " + shown(error.what(), 200);
  }
  if (fault.empty()) return outputs;
  throw Error(HELIUM_ERROR_BUNDLE, path_of(spec.file).string() + " " + fault + "; export the bundle anew");
}

const Bundle::Function& Bundle::function(const std::string& file) {
  const auto loaded = functions_.find(file);
  if (loaded != functions_.end()) return loaded->second;
  const mx::ImportedFunction imported = mx::import_function(path_of(file).string());
  Function function = [imported](const mx::Args& arguments) { return imported(arguments); };
  // Chains of element-wise operations become one kernel each. On the CPU that would call a C++ compiler.
  if (manifest_->backend != "cpu") function = mx::compile(function);
  return functions_.emplace(file, std::move(function)).first->second;
}

std::string Bundle::fault_of(const std::vector<mx::array>& outputs, std::int32_t capacity) const {
  const std::size_t count = 1 + static_cast<std::size_t>(manifest_->model.num_hidden_layers);
  if (outputs.size() != count) {
    return "gives " + std::to_string(outputs.size()) + " arrays, and the manifest has " + std::to_string(count);
  }
  for (std::size_t i = 0; i < count; ++i) {
    const bool is_logits = i == 0;
    const mx::Shape shape = is_logits ? mx::Shape{1, manifest_->model.vocab_size} : cache_shape(capacity);
    if (outputs[i].shape() == shape && outputs[i].dtype() == dtype_) continue;
    return "gives " + described(outputs[i].dtype(), outputs[i].shape()) + " as its output " + std::to_string(i) +
           ", and the manifest has " + described(dtype_, shape);
  }
  return "";
}

}  // namespace helium
