// The device that a rank computes on: the cores of this machine, or a card.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/backend.h"
#include "kernels/quantize.h"
#include "model/config.h"
#include "worker/options.h"

namespace epic::worker {

struct Device {
  std::unique_ptr<kernels::Backend> backend;
  int64_t available_bytes = 0;  // of its memory, this rank's share
};

// FailedPrecondition where the device is not there, InvalidArgument or Unimplemented where it does
// not take what the flags or the model ask for; each names the flag.
absl::StatusOr<Device> OpenDevice(const WorkerOptions& options, const model::ModelConfig& config);

// The memory of the device that the backend takes for steps of `rows` rows, beside what the caller
// allocates.
int64_t ScratchBytes(const WorkerOptions& options, const model::ModelConfig& config, int rows,
                     int logit_rows);

// The values of --quantization and --prompt-attention.
kernels::Quantization QuantizationOf(const WorkerOptions& options);
kernels::PromptAttention PromptAttentionOf(const WorkerOptions& options);

// --device: the number of the card (cuda: 0), or none (cpu). InvalidArgument for anything else.
absl::StatusOr<std::optional<int>> ParseCard(absl::string_view device);

}  // namespace epic::worker
