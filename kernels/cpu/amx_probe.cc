#include "kernels/cpu/amx_probe.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/huge_memory.h"
#include "kernels/cpu/tile_gemm.h"
#include "kernels/number.h"

namespace epic::kernels {
namespace {

bool MayUseTiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  // Linux gives the 8 KiB of tile state to a process that asks; threads that it makes later inherit
  // the leave.
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Small integers, whose products are exact in any order.
int TestValue(int64_t row, int64_t column) {
  return static_cast<int>((row * 7 + column * 5) % 13) - 6;
}

bool ProductIsRight() {
  // These sizes fill no tile: there are two tiles of rows, three panels, and in K three tiles, the
  // last of each only in part.
  constexpr int64_t kRows = 19;
  constexpr int64_t kOutputs = 37;
  constexpr int64_t kInputs = 70;
  const TileGemmFamily family(RealAmxKernels());
  std::vector<BF16> weight;
  for (int64_t i = 0; i < kOutputs * kInputs; ++i) {
    weight.push_back(ToBF16(static_cast<float>(TestValue(i / kInputs, i % kInputs))));
  }
  const SourceMatrix source = {
      .dtype = DType::kBF16, .rows = kOutputs, .cols = kInputs, .data = weight.data()};
  HugeMemory packed(PackedBytes(family, kOutputs, kInputs, DType::kBF16));
  family.Pack(source, DType::kBF16, 0, PanelCount(family, kOutputs), packed.data());
  const int64_t row_bytes = family.row_bytes(kInputs, DType::kBF16);
  HugeMemory rows(kRows * row_bytes);
  for (int64_t m = 0; m < kRows; ++m) {
    std::vector<BF16> row;
    for (int64_t k = 0; k < kInputs; ++k) {
      row.push_back(ToBF16(static_cast<float>(TestValue(k, m + 3))));
    }
    family.PrepareRow(row.data(), kInputs, DType::kBF16, rows.data() + m * row_bytes);
  }
  HugeMemory scratch(family.scratch_bytes(kInputs));
  std::vector<float> c(kRows * kOutputs);
  family.Gemm({.prepared = rows.data(),
               .prepared_stride = row_bytes,
               .m = kRows,
               .weight = {packed.data(), kOutputs, kInputs, DType::kBF16},
               .n_end = kOutputs,
               .c = c.data(),
               .c_stride = kOutputs,
               .scratch = scratch.data()});
  for (int64_t i = 0; i < kRows * kOutputs; ++i) {
    int expected = 0;
    for (int64_t k = 0; k < kInputs; ++k) {
      expected += TestValue(k, i / kOutputs + 3) * TestValue(i % kOutputs, k);
    }
    if (c[i] != static_cast<float>(expected)) return false;
  }
  return true;
}

std::string Probe() {
  const CpuFeatures features = DetectCpuFeatures();
  // The cheapest question comes first; tile instructions must not run before the first two are
  // answered.
  if (!features.amx) return "this CPU (" + features.name + ") or its system has no AMX";
  if (!MayUseTiles()) return "the system refuses the use of AMX tiles to this process";
  if (!ProductIsRight()) return "the AMX tile product of this CPU comes out wrong";
  return "";
}

}  // namespace

const std::string& AmxFailure() {
  // The process asks once: the permission, once given, stays.
  static const std::string failure = Probe();
  return failure;
}

}  // namespace epic::kernels
