// How a weight may be written: its type, its scales, and its packing (weights.h).
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "kernels/number.h"
#include "model/weights.h"

namespace epic::model {
namespace {

using kernels::DType;

std::optional<DType> ServedType(std::string_view dtype) {
  if (dtype == "BF16") return DType::kBF16;
  if (dtype == "F32") return DType::kF32;
  if (dtype == "F16") return DType::kF16;
  if (dtype == "F8_E4M3") return DType::kF8E4M3;
  if (dtype == "I8") return DType::kI8;
  return std::nullopt;
}

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

}  // namespace

absl::StatusOr<BoundWeight> WeightBinder::Bind(const std::string& name,
                                               const std::vector<int64_t>& shape,
                                               bool may_be_quantised) const {
  const CheckpointTensor* tensor = checkpoint_.Find(name);
  if (tensor == nullptr) {
    return Invalid("tensor ", name, " is missing; expected [", absl::StrJoin(shape, ", "), "]");
  }
  const std::optional<DType> dtype = ServedType(tensor->dtype);
  // Norms, router and embedding must not be quantised: their scales would have no meaning here.
  const bool quantised = dtype == DType::kF8E4M3 || dtype == DType::kI8;
  if (!dtype || (quantised && !may_be_quantised)) {
    return Invalid("tensor ", name, " is ", tensor->ToString(), "; it must be BF16, F16",
                   may_be_quantised ? ", F32, F8_E4M3 or I8" : " or F32");
  }
  if (tensor->shape != shape) {
    return Invalid("tensor ", name, " is ", tensor->ToString(), "; its shape must be [",
                   absl::StrJoin(shape, ", "), "] by config.json");
  }
  BoundWeight weight{.name = name,
                     .source = {.dtype = *dtype,
                                .rows = shape.size() == 1 ? 1 : shape[0],
                                .cols = shape.back(),
                                .data = tensor->bytes.data()}};
  if (quantised) RETURN_IF_ERROR(BindScales(weight));
  return weight;
}

absl::Status WeightBinder::BindScales(BoundWeight& weight) const {
  const bool fp8 = weight.source.dtype == DType::kF8E4M3;
  // A type without its configuration is refused, since the layout of its scales would be a guess.
  if (!(fp8 ? config_.fp8_blocks : config_.int8_rows)) {
    return Invalid("tensor ", weight.name, fp8 ? " is F8_E4M3" : " is I8",
                   ", but config.json has no quantization_config of ",
                   fp8 ? "quant_method fp8" : "8-bit integers");
  }
  if (!fp8 && weight.source.cols > kernels::kInt8InputsMax) {
    return Invalid("tensor ", weight.name, " has ", weight.source.cols,
                   " inputs; I8 is served up to ", kernels::kInt8InputsMax);
  }
  return FindScales(
      weight, absl::StrCat(weight.name, fp8 ? "_scale_inv" : "_scale"),
      fp8 ? std::vector<std::string>{"F32"} : std::vector<std::string>{"F32", "BF16", "F16"});
}

absl::Status WeightBinder::FindScales(BoundWeight& weight, std::string name,
                                      const std::vector<std::string>& dtypes) const {
  const std::vector<int64_t> shape = {weight.source.scale_rows(), weight.source.scale_cols()};
  const std::string expected =
      absl::StrCat(absl::StrJoin(dtypes, " or "), " [", absl::StrJoin(shape, ", "), "]");
  const CheckpointTensor* scales = checkpoint_.Find(name);
  if (scales == nullptr) return Invalid("tensor ", name, " is missing; expected ", expected);
  // A column of scales may be written as a vector.
  const bool shaped =
      scales->shape == shape || (shape[1] == 1 && weight.source.dtype == DType::kI8 &&
                                 scales->shape == std::vector<int64_t>{shape[0]});
  if (!shaped || std::ranges::count(dtypes, scales->dtype) == 0) {
    return Invalid("tensor ", name, " is ", scales->ToString(), "; it must be ", expected);
  }
  weight.source.scales = scales->bytes.data();
  weight.source.scales_dtype = *ServedType(scales->dtype);
  weight.scales_name = std::move(name);
  return absl::OkStatus();
}

absl::StatusOr<BoundWeight> WeightBinder::PackedInt4(const std::string& name, int64_t rows,
                                                     int64_t cols) const {
  const std::string packed_name = absl::StrCat(name, "_packed");
  // The caller has seen that it is there.
  const CheckpointTensor& packed = *checkpoint_.Find(packed_name);
  if (!config_.int4_groups) {
    return Invalid("tensor ", packed_name,
                   " stands for a weight, but config.json has no quantization_config of 4-bit "
                   "integers in groups of 32");
  }
  // Eight values of four bits in each I32, the lowest bits first.
  const std::vector<int64_t> shape = {rows, (cols + 7) / 8};
  if (packed.dtype != "I32" || packed.shape != shape) {
    return Invalid("tensor ", packed_name, " is ", packed.ToString(), "; it must be I32 [",
                   absl::StrJoin(shape, ", "), "] by config.json");
  }
  BoundWeight weight{
      .name = packed_name,
      .source = {.dtype = DType::kI4, .rows = rows, .cols = cols, .data = packed.bytes.data()}};
  RETURN_IF_ERROR(CheckPackedShape(absl::StrCat(name, "_shape"), rows, cols));
  RETURN_IF_ERROR(FindScales(weight, absl::StrCat(name, "_scale"), {"BF16"}));
  return weight;
}

absl::Status WeightBinder::CheckPackedShape(const std::string& name, int64_t rows,
                                            int64_t cols) const {
  const CheckpointTensor* tensor = checkpoint_.Find(name);
  const auto expected = absl::StrCat("[", rows, ", ", cols, "]");
  if (tensor == nullptr) return Invalid("tensor ", name, " is missing; it must say ", expected);
  const bool wide = tensor->dtype == "I64";
  if ((!wide && tensor->dtype != "I32") || tensor->shape != std::vector<int64_t>{2}) {
    return Invalid("tensor ", name, " is ", tensor->ToString(), "; it must be I32 or I64 [2]");
  }
  // The shape before packing. Unaligned: data of a checkpoint may begin at any byte.
  int64_t said[2];
  for (int i = 0; i < 2; ++i) {
    said[i] = wide ? kernels::LoadUnaligned<int64_t>(tensor->bytes.data(), i)
                   : kernels::LoadUnaligned<int32_t>(tensor->bytes.data(), i);
  }
  if (said[0] == rows && said[1] == cols) return absl::OkStatus();
  return Invalid("tensor ", name, " says [", said[0], ", ", said[1], "]; it must say ", expected,
                 " by config.json");
}

absl::Status CheckScales(const BoundWeight& weight) {
  const kernels::SourceMatrix& source = weight.source;
  if (source.scales == nullptr) return absl::OkStatus();
  // Integers that are all zero may have scale zero.
  const bool may_be_zero = source.dtype != DType::kF8E4M3;
  for (int64_t i = 0; i < source.scale_rows() * source.scale_cols(); ++i) {
    const float scale = kernels::LoadReal(source.scales_dtype, source.scales, i);
    if (std::isfinite(scale) && (scale > 0 || (scale == 0 && may_be_zero))) continue;
    return Invalid("tensor ", weight.scales_name, " holds ", scale, " at [",
                   i / source.scale_cols(), ", ", i % source.scale_cols(),
                   "]; a scale must be positive and finite");
  }
  return absl::OkStatus();
}

}  // namespace epic::model
