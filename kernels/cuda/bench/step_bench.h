// The time of whole steps of the backend, host and card together, with CUDA graphs and without.
#pragma once

namespace epic::kernels::cuda {

// Layers of DeepSeek-V3's widths in FP8, of whose 256 experts this card holds 32.
void BenchSteps();

}  // namespace epic::kernels::cuda
