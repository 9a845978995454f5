// WGMMA for the widths that kernels use: MultiplyE4M3, MultiplyBF16, MultiplyBF16Transposed.
// Part of sm90.h. Operands are descriptors (matrix_layout.h); `accumulate` is scale-d.
#pragma once

#include <cstdint>

#define EPIC_REGISTERS_8(i)                                                                   \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define EPIC_REGISTERS_16(i) EPIC_REGISTERS_8(i), EPIC_REGISTERS_8(i + 8)
#define EPIC_REGISTERS_32(i) EPIC_REGISTERS_16(i), EPIC_REGISTERS_16(i + 16)
#define EPIC_REGISTERS_64(i) EPIC_REGISTERS_32(i), EPIC_REGISTERS_32(i + 32)
#define EPIC_REGISTERS_128(i) EPIC_REGISTERS_64(i), EPIC_REGISTERS_64(i + 64)

// The same operands by number, as the instruction lists them.
#define EPIC_NUMBERS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define EPIC_NUMBERS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define EPIC_NUMBERS_32                      \
  EPIC_NUMBERS_16                            \
  ", %16, %17, %18, %19, %20, %21, %22, %23" \
  ", %24, %25, %26, %27, %28, %29, %30, %31"
#define EPIC_NUMBERS_64                      \
  EPIC_NUMBERS_32                            \
  ", %32, %33, %34, %35, %36, %37, %38, %39" \
  ", %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55" \
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define EPIC_NUMBERS_128                             \
  EPIC_NUMBERS_64                                    \
  ", %64, %65, %66, %67, %68, %69, %70, %71"         \
  ", %72, %73, %74, %75, %76, %77, %78, %79"         \
  ", %80, %81, %82, %83, %84, %85, %86, %87"         \
  ", %88, %89, %90, %91, %92, %93, %94, %95"         \
  ", %96, %97, %98, %99, %100, %101, %102, %103"     \
  ", %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119" \
  ", %120, %121, %122, %123, %124, %125, %126, %127"

// (the count of registers, operand numbers of a, b and accumulate, kind, K of one product, type,
// the immediates after scale-d)
#define EPIC_PRODUCT(count, a_number, b_number, flag_number, depth, type, immediates)        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #flag_number                             \
               ", 0;\nwgmma.mma_async.sync.aligned." depth ".f32." type "." type             \
               " {" EPIC_NUMBERS_##count "}, %" #a_number ", %" #b_number ", p, " immediates \
                                         ";\n}\n"                                            \
               : EPIC_REGISTERS_##count(0)                                                   \
               : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)))

namespace epic::kernels::cuda {

template <int kColumns>
EPIC_DEVICE void MultiplyE4M3(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kColumns == 16 || kColumns == 32 || kColumns == 64 || kColumns == 128);
  if constexpr (kColumns == 16) {
    EPIC_PRODUCT(8, 8, 9, 10, "m64n16k32", "e4m3", "1, 1");
  } else if constexpr (kColumns == 32) {
    EPIC_PRODUCT(16, 16, 17, 18, "m64n32k32", "e4m3", "1, 1");
  } else if constexpr (kColumns == 64) {
    EPIC_PRODUCT(32, 32, 33, 34, "m64n64k32", "e4m3", "1, 1");
  } else {
    EPIC_PRODUCT(64, 64, 65, 66, "m64n128k32", "e4m3", "1, 1");
  }
}

template <int kColumns>
EPIC_DEVICE void MultiplyBF16(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kColumns == 16 || kColumns == 32 || kColumns == 64 || kColumns == 128);
  if constexpr (kColumns == 16) {
    EPIC_PRODUCT(8, 8, 9, 10, "m64n16k16", "bf16", "1, 1, 0, 0");
  } else if constexpr (kColumns == 32) {
    EPIC_PRODUCT(16, 16, 17, 18, "m64n32k16", "bf16", "1, 1, 0, 0");
  } else if constexpr (kColumns == 64) {
    EPIC_PRODUCT(32, 32, 33, 34, "m64n64k16", "bf16", "1, 1, 0, 0");
  } else {
    EPIC_PRODUCT(64, 64, 65, 66, "m64n128k16", "bf16", "1, 1, 0, 0");
  }
}

template <int kColumns>
EPIC_DEVICE void MultiplyBF16Transposed(float (&d)[kColumns / 2], uint64_t a, uint64_t b,
                                        bool accumulate) {
  // The last immediate transposes B: BF16 alone may be MN-major.
  static_assert(kColumns == 64 || kColumns == 128 || kColumns == 256);
  if constexpr (kColumns == 64) {
    EPIC_PRODUCT(32, 32, 33, 34, "m64n64k16", "bf16", "1, 1, 0, 1");
  } else if constexpr (kColumns == 128) {
    EPIC_PRODUCT(64, 64, 65, 66, "m64n128k16", "bf16", "1, 1, 0, 1");
  } else {
    EPIC_PRODUCT(128, 128, 129, 130, "m64n256k16", "bf16", "1, 1, 0, 1");
  }
}

}  // namespace epic::kernels::cuda

#undef EPIC_PRODUCT
