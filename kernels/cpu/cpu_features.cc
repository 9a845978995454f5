#include "kernels/cpu/cpu_features.h"

#include <cpuid.h>

#include <cstdint>
#include <cstring>

namespace epic::kernels {
namespace {

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers Cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

bool Bit(unsigned word, int bit) { return (word >> bit & 1u) != 0; }

// XGETBV tells which registers the system saves. A CPU may have an instruction set that its system
// does not switch: using it would mix up threads' values.
uint64_t SavedState() {
  unsigned low = 0;
  unsigned high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool IsAmd() {
  const Registers vendor = Cpuid(0, 0);
  // The registers spell "AuthenticAMD", four letters each.
  return vendor.ebx == 0x68747541u && vendor.edx == 0x69746e65u && vendor.ecx == 0x444d4163u;
}

std::string BrandString() {
  if (__get_cpuid_max(0x80000000u, nullptr) < 0x80000004u) return "unknown CPU";
  char text[49] = {};
  for (unsigned i = 0; i < 3; ++i) {
    const Registers r = Cpuid(0x80000002u + i, 0);
    std::memcpy(text + 16 * i, &r, 16);
  }
  std::string name = text;
  const size_t begin = name.find_first_not_of(' ');
  const size_t end = name.find_last_not_of(' ');
  return begin == std::string::npos ? "unknown CPU" : name.substr(begin, end - begin + 1);
}

}  // namespace

CpuFeatures DetectCpuFeatures() {
  CpuFeatures features;
  features.name = BrandString();
  const Registers base = Cpuid(1, 0);
  constexpr int kOsXsave = 27;
  // Without OSXSAVE even XGETBV is an illegal instruction.
  if (!Bit(base.ecx, kOsXsave)) return features;
  const uint64_t state = SavedState();
  const Registers extended = Cpuid(7, 0);
  // XCR0: bits 1 and 2 are SSE and AVX, 5 to 7 AVX-512, 17 and 18 AMX (Intel SDM).
  const bool ymm = (state & 0x6) == 0x6;
  const bool zmm = (state & 0xe6) == 0xe6;
  const bool tiles = (state & 0x60000) == 0x60000;
  // The bits are AVX, FMA and F16C of leaf 1 and AVX2 of leaf 7, then AVX-512 F, DQ, BW and VL.
  features.avx2 =
      ymm && Bit(base.ecx, 28) && Bit(base.ecx, 12) && Bit(base.ecx, 29) && Bit(extended.ebx, 5);
  features.avx512 = features.avx2 && zmm && Bit(extended.ebx, 16) && Bit(extended.ebx, 17) &&
                    Bit(extended.ebx, 30) && Bit(extended.ebx, 31);
  features.avx512_vbmi = features.avx512 && Bit(extended.ecx, 1);
  features.avx512_vnni = features.avx512 && Bit(extended.ecx, 11);
  features.avx512_bf16 = features.avx512_vbmi && Bit(Cpuid(7, 1).eax, 5);
  features.fast_bf16 = features.avx512_bf16 && IsAmd();
  // The bits are AMX-BF16, AMX-TILE and AMX-INT8. VBMI is needed because the vector code beside the
  // tiles is compiled for it.
  features.amx = features.avx512_vbmi && tiles && Bit(extended.edx, 22) && Bit(extended.edx, 24) &&
                 Bit(extended.edx, 25);
  return features;
}

}  // namespace epic::kernels
