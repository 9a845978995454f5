// Greedy sampling: the id of each row's largest logit, ties to the lowest id.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/launch.h"

namespace epic::kernels::cuda {

// Pointers are to device memory.
struct ArgmaxArguments {
  int rows = 0;
  int columns = 0;                // of the row in memory
  int limit = 0;                  // ids from here on are never taken; 1 .. columns
  const float* logits = nullptr;  // [rows, columns], no NaN
  int32_t* ids = nullptr;         // [rows]; 0 where all are −∞
};
void Argmax(Stream stream, const ArgmaxArguments& arguments);

}  // namespace epic::kernels::cuda
