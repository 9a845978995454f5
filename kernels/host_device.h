// EPIC_HOST_DEVICE: a function that CUDA code may call too.
#pragma once

#ifdef __CUDACC__
#define EPIC_HOST_DEVICE __host__ __device__
#else
#define EPIC_HOST_DEVICE
#endif
