// Whole steps of small random models on the CUDA backend, against kernels/reference.
#include "kernels/cuda/backend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cuda/test/backend_shape.h"
#include "kernels/cuda/test/harness.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/testing/toy_model.h"

namespace epic::kernels::cuda {
namespace {

constexpr int kVariants = 4;
constexpr uint32_t kNaN = 0x7fc00000u;  // as ToyRun reports every NaN

std::unique_ptr<Backend> Device(KvType kv_type) {
  CudaBackendResult made = MakeCudaBackend({.kv_type = kv_type});
  Expect(made.error.empty(), made.error);
  for (const std::string& note : made.notes) ReportFailure(note);
  return std::move(made.backend);
}

// The median over positions of the relative error of logits: where an expert changes, a position
// is another computation.
double Distance(const ToyRun& a, const ToyRun& b) {
  std::vector<double> errors;
  for (const auto& [key, values] : a.values()) {
    double error = 0, size = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      error += std::pow(values[i] - b.values().at(key)[i], 2);
      size += std::pow(values[i], 2);
    }
    errors.push_back(std::sqrt(error / size));
  }
  std::sort(errors.begin(), errors.end());
  return errors[errors.size() / 2];
}

EPIC_KERNEL_TEST(StepsAreCloseToTheReference) {
  for (int variant = 0; variant < kVariants; ++variant) {
    const ToyModel model(BackendShape(variant), 7 + variant);
    const KvType kv_type = variant % 3 == 0 ? KvType::kBF16 : KvType::kFP8;
    const auto device = Device(kv_type);
    const auto reference = MakeReferenceBackend({.fp8_activations = true, .kv_type = kv_type});
    ToyRun a(model, *device, 2, 100);
    ToyRun b(model, *reference, 2, 100);
    for (const auto& chunks : Schedule{{{0, 5}}, {{0, 1}, {1, 66}}, {{1, 2}, {0, 1}}}) {
      a.Step(chunks);
      b.Step(chunks);
    }
    const double distance = Distance(b, a);
    // An FP8 code that rounds the other way is a step of 6 %.
    const double limit = model.shape().dtype == DType::kF8E4M3 ? 0.06 : 0.03;
    Expect(distance < limit,
           "variant " + std::to_string(variant) + " is " + std::to_string(distance) + " away");
    for (const auto& [key, bits] : a.logits()) {
      Expect(std::count(bits.begin(), bits.end(), kNaN) == 0, "a NaN");
    }
  }
}

#ifdef __CUDACC__
// Too large for the emulated device.
EPIC_KERNEL_TEST(StepsOfV3sWidthsAreCloseToTheReferenceAndReplayTheirBits) {
  const ToyModel model(V3Shape(), 11);
  const auto device = Device(KvType::kBF16);
  const auto reference = MakeReferenceBackend({.fp8_activations = true});
  ToyRun a(model, *device, 2, 100);
  ToyRun b(model, *reference, 2, 100);
  const Schedule schedule = {{{0, 3}}, {{0, 1}, {1, 2}}, {{1, 1}, {0, 1}}, {{0, 1}, {1, 1}}};
  for (const auto& chunks : schedule) {
    a.Step(chunks);
    b.Step(chunks);
  }
  const double distance = Distance(b, a);
  Expect(distance < 0.06, "it is " + std::to_string(distance) + " away");
  CudaBackendResult eager = MakeCudaBackend({.graphs = false});
  ToyRun c(model, *eager.backend, 2, 100);
  for (const auto& chunks : schedule) c.Step(chunks);
  Expect(a.logits() == c.logits(), "graphs have other bits");
}
#endif

EPIC_KERNEL_TEST(ARowDoesNotDependOnChunkingOrBatch) {
  for (const int variant : {1, 2}) {
    const ToyModel model(BackendShape(variant), 70 + variant);
    const auto backend = Device(variant == 1 ? KvType::kFP8 : KvType::kBF16);
    const Logits whole = RunAll(model, *backend, {{{1, 67}}});
    const std::string name = "variant " + std::to_string(variant);
    Expect(RunAll(model, *backend, {{{1, 1}}, {{1, 62}}, {{1, 2}}, {{1, 2}}}) == whole,
           name + " in chunks");
    const Logits mixed = RunAll(model, *backend, {{{0, 4}, {1, 33}}, {{2, 7}, {1, 34}, {0, 2}}});
    for (const auto& [key, bits] : whole) Expect(mixed.at(key) == bits, name + " in a batch");
  }
}

// As when experts move: memory comes and goes and is written, by another thread, while steps are
// recorded and replayed.
EPIC_KERNEL_TEST(StepsKeepTheirBitsWhileWeightsAreLoaded) {
  const ToyModel model(BackendShape(0), 31);
  const auto backend = Device(KvType::kBF16);
  const Schedule schedule = {{{0, 2}}, {{0, 1}, {1, 1}}, {{0, 1}, {1, 1}}, {{0, 1}, {1, 1}}};
  const Logits expected = RunAll(model, *backend, schedule);
  Random random(8);
  ToyMatrix gate(random, DType::kBF16, 32, 48), up(random, DType::kBF16, 32, 48),
      down(random, DType::kBF16, 48, 32);
  std::atomic<bool> ended = false;
  std::atomic<int> loads = 0;
  std::thread loader([&] {
    for (; !ended; ++loads) backend->LoadMlp(gate.source(), up.source(), down.source());
  });
  while (loads == 0) std::this_thread::yield();
  Expect(RunAll(model, *backend, schedule) == expected, "other bits");
  ended = true;
  loader.join();
}

EPIC_KERNEL_TEST(SplitsOfALongSequenceAreMerged) {
  ToyShape shape = BackendShape(0);
  shape.gate.experts = 2;
  shape.gate.top_k = 1;
  shape.attention.hidden = 32;
  shape.attention.heads = 1;
  shape.intermediate = 16;
  const ToyModel model(shape, 3);
  const auto device = Device(KvType::kBF16);
  const auto reference = MakeReferenceBackend({});
  ToyRun a(model, *device, 1, 640);
  ToyRun b(model, *reference, 1, 640);
  for (const auto& chunks : Schedule{{{0, 510}}, {{0, 2}}, {{0, 3}}}) {
    a.Step(chunks);
    b.Step(chunks);
  }
  Expect(Distance(b, a) < 0.03, "far from the reference");
}

EPIC_KERNEL_TEST(ABrokenRowDoesNotReachOtherSequences) {
  ToyModel model(BackendShape(0), 4);
  const auto backend = Device(KvType::kBF16);
  const Schedule schedule = {{{0, 3}, {1, 3}}, {{0, 1}, {1, 1}}};
  const Logits sound = RunAll(model, *backend, schedule);
  model.BreakToken(model.Token(0, 1));
  const Logits broken = RunAll(model, *backend, schedule);
  for (const int position : {1, 3}) {
    const auto& bits = broken.at({0, position});
    Expect(std::count(bits.begin(), bits.end(), kNaN) == std::ssize(bits), "it is not all NaN");
  }
  for (int i = 0; i < 4; ++i) Expect(broken.at({1, i}) == sound.at({1, i}), "another's row");
}

}  // namespace
}  // namespace epic::kernels::cuda
