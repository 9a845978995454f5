#include "coordinator/frontend/sampling.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "base/status.h"
#include "coordinator/frontend/ranges.h"
#include "coordinator/request.h"

namespace epic::coordinator {
namespace {

// The limits of vLLM and of OpenAI, whose clients expect an error beyond them.
constexpr double kTemperatureMax = 2;
constexpr double kRepetitionPenaltyMax = 10;
constexpr double kPenaltyMax = 2;
constexpr int64_t kTopKMax = std::numeric_limits<int32_t>::max();

}  // namespace

v1::Sampling ReadSampling(FieldReader& fields) {
  v1::Sampling sampling;
  const auto number = [&](const char* name, void (v1::Sampling::*set)(float)) {
    const std::optional<double> value = fields.Number(name);
    if (value) (sampling.*set)(static_cast<float>(*value));
  };
  number("temperature", &v1::Sampling::set_temperature);
  number("top_p", &v1::Sampling::set_top_p);
  number("min_p", &v1::Sampling::set_min_p);
  number("repetition_penalty", &v1::Sampling::set_repetition_penalty);
  number("presence_penalty", &v1::Sampling::set_presence_penalty);
  number("frequency_penalty", &v1::Sampling::set_frequency_penalty);
  if (const auto top_k = fields.Integer("top_k")) {
    // Checked here, for the message's field is narrower than JSON's numbers.
    const absl::Status status = CheckInteger("top_k", *top_k, -1, kTopKMax);
    if (!status.ok()) fields.Fail("top_k", std::string(status.message()));
    sampling.set_top_k(static_cast<int32_t>(*top_k));
  }
  // Clients that always send the field mean "draw one" by -1.
  const std::optional<int64_t> seed = fields.Integer("seed");
  if (seed && *seed != -1) sampling.set_seed(static_cast<uint64_t>(*seed));
  return sampling;
}

absl::StatusOr<v1::Sampling> CompleteSampling(const v1::Sampling& defaults,
                                              const v1::Sampling& given) {
  v1::Sampling sampling = NeutralSampling();
  // A field counts if it is present, whatever its value: a temperature of 0 asks for greedy
  // answers.
  sampling.MergeFrom(defaults);
  sampling.MergeFrom(given);
  RETURN_IF_ERROR(CheckNumber("temperature", sampling.temperature(), 0, kTemperatureMax));
  RETURN_IF_ERROR(CheckNumber("top_p", sampling.top_p(), 0, 1, /*low_open=*/true));
  RETURN_IF_ERROR(CheckNumber("min_p", sampling.min_p(), 0, 1));
  RETURN_IF_ERROR(CheckInteger("top_k", sampling.top_k(), -1, kTopKMax));
  RETURN_IF_ERROR(CheckNumber("repetition_penalty", sampling.repetition_penalty(), 0,
                              kRepetitionPenaltyMax, /*low_open=*/true));
  for (const auto& [field, penalty] :
       {std::pair{"presence_penalty", sampling.presence_penalty()},
        std::pair{"frequency_penalty", sampling.frequency_penalty()}}) {
    RETURN_IF_ERROR(CheckNumber(field, penalty, -kPenaltyMax, kPenaltyMax));
  }
  // -1 is vLLM's word for "off", which is 0 from here on.
  sampling.set_top_k(std::max(sampling.top_k(), 0));
  return sampling;
}

}  // namespace epic::coordinator
