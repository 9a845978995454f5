// EPIC_HOST_DEVICE: a function that CUDA code may call too, so that the host and a card compute
// from one definition.
#pragma once

#ifdef __CUDACC__
#define EPIC_HOST_DEVICE __host__ __device__
#else
#define EPIC_HOST_DEVICE
#endif
