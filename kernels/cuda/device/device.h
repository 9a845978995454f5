// The device primitives that kernels are written over. Two implementations with one interface:
// sm90.h is PTX for sm_90a, emulated.h runs the same kernel sources on the host with exact
// semantics and checks (emulated_block.h). test/primitives_test.cc probes each primitive on both.
//
// Indices          ThreadIndex, LaneIndex, WarpIndex, WarpgroupIndex, BlockIndex, BlockCount
// Shared memory    Shared<T>: Load, Store, address(); SharedAt<T>(offset_bytes, count)
// Barriers         SyncBlock, SyncWarp; SyncThreads, ArriveThreads (numbered, counting threads);
//                  InitBarrier, FenceBarrierInit, Arrive, ArriveAndExpect, WaitForPhase (mbarrier)
// Warp             ShuffleXor, ShuffleFrom, Ballot, Uniform (tells the compiler that a value is the
//                  same in all lanes); all 32 threads take part
// Bulk copies      TensorMap, MakeTensorMap, CopyTile: a box to shared memory, bytes counted by an
//                  mbarrier; AcquireTensorMap before a map in global memory is used;
//                  FenceAsyncProxy after Store and before WGMMA reads it
// Matrix products  ProductsBegin, MultiplyE4M3<N>, MultiplyBF16<N>, MultiplyBF16Transposed<N>,
//                  ProductsCommit, ProductsWait<groups>: D[64×N] (+)= A[64×32 bytes]·B, by a
//                  warpgroup; d is not to be touched from the first product to its wait
// Registers        ReleaseRegisters<n>, ClaimRegisters<n>, of a warpgroup
// Arithmetic       FastExp2 (ex2.approx.ftz on the card: within 2 ulp), ToE4M3Pair (to nearest
//                  even, saturating; NaN stays), FromE4M3Pair, ToBF16Pair, CountLeadingZeros,
//                  CountOnes
// Global memory    AtomicAdd; else plain pointers
#pragma once

#ifdef __CUDACC__
#define EPIC_UNROLL _Pragma("unroll")
#define EPIC_DEVICE __device__ __forceinline__
#include "kernels/cuda/device/sm90.h"  // IWYU pragma: export
#else
#define EPIC_UNROLL
#define EPIC_DEVICE inline
#include "kernels/cuda/device/emulated.h"  // IWYU pragma: export
#endif
