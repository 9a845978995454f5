// What a step takes beyond the sum of its operations: planning, sampling, committing, and what lies
// between the calls of the backend. `step_benchmark MODEL`; argument: sequences that decode side by
// side, with seeds and temperatures of their own. No network.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "base/env.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/checkpoint.h"
#include "model/local_exchange.h"
#include "model/model.h"
#include "worker/engine/engine.h"
#include "worker/engine/transformer.h"
#include "worker/kv/kv_pool.h"
#include "worker/kv/page_ledger.h"
#include "worker/testing/start.h"

namespace epic::worker {
namespace {

constexpr int kPrompt = 16;
constexpr int kMaxTokens = 200;
constexpr int kSequencesMax = 32;
constexpr int kPages = kSequencesMax * 5;

// The backend of a step, which counts the time within its operations.
class TimedBackend : public kernels::Backend {
 public:
  explicit TimedBackend(kernels::Backend& of) : of_(of) {}

  absl::Duration TakeTime() { return std::exchange(time_, absl::ZeroDuration()); }

  std::string profile() const override { return of_.profile(); }
  std::string description() const override { return of_.description(); }
  kernels::KvType kv_type() const override { return of_.kv_type(); }
  bool attends_slices() const override { return of_.attends_slices(); }
  void Wait() override { of_.Wait(); }
  void ForEach(int count, const std::function<void(int)>& task) override {
    of_.ForEach(count, task);
  }
  std::unique_ptr<kernels::Memory> Allocate(int64_t bytes, kernels::MemoryUse use) override {
    return of_.Allocate(bytes, use);
  }
  std::unique_ptr<kernels::Matrix> LoadMatrix(const kernels::SourceMatrix& source) override {
    return of_.LoadMatrix(source);
  }
  std::unique_ptr<kernels::Mlp> LoadMlp(const kernels::SourceMatrix& gate,
                                        const kernels::SourceMatrix& up,
                                        const kernels::SourceMatrix& down) override {
    return of_.LoadMlp(gate, up, down);
  }
  std::unique_ptr<kernels::Attention> LoadAttention(
      const kernels::AttentionSource& source) override {
    return of_.LoadAttention(source);
  }
  std::unique_ptr<kernels::Gate> LoadGate(const kernels::GateShape& shape,
                                          const kernels::SourceMatrix& weight,
                                          std::span<const float> bias) override {
    return of_.LoadGate(shape, weight, bias);
  }
  void BeginStep(const kernels::StepPlan& plan, const kernels::Rope& rope) override {
    Time([&] { of_.BeginStep(plan, rope); });
  }
  void Embed(const kernels::StepPlan& plan, const kernels::SourceMatrix& table,
             kernels::Tensor residual) override {
    Time([&] { of_.Embed(plan, table, residual); });
  }
  void AttentionIn(const kernels::Attention& attention, const kernels::StepPlan& plan,
                   const kernels::KvView& kv, int layer, kernels::Tensor residual,
                   kernels::Tensor query) override {
    Time([&] { of_.AttentionIn(attention, plan, kv, layer, residual, query); });
  }
  void Attend(const kernels::Attention& attention, const kernels::StepPlan& plan,
              const kernels::KvView& kv, int layer, kernels::Tensor query,
              kernels::Tensor output) override {
    Time([&] { of_.Attend(attention, plan, kv, layer, query, output); });
  }
  void AttentionOut(const kernels::Attention& attention, kernels::Tensor output,
                    kernels::Tensor residual) override {
    Time([&] { of_.AttentionOut(attention, output, residual); });
  }
  void Norm(kernels::Tensor weight, float eps, kernels::Tensor residual,
            kernels::Tensor rows) override {
    Time([&] { of_.Norm(weight, eps, residual, rows); });
  }
  void ChooseExperts(const kernels::Gate& gate, const kernels::GateResult& result) override {
    Time([&] { of_.ChooseExperts(gate, result); });
  }
  void Experts(std::span<const kernels::Mlp* const> experts, kernels::Tensor rows,
               std::span<const kernels::ExpertRow> pairs, kernels::Tensor out) override {
    Time([&] { of_.Experts(experts, rows, pairs, out); });
  }
  void ApplyMlp(const kernels::Mlp& mlp, kernels::Tensor rows, kernels::Tensor out) override {
    Time([&] { of_.ApplyMlp(mlp, rows, out); });
  }
  void Combine(kernels::Tensor shared, kernels::Tensor expert_rows, kernels::Tensor weights,
               kernels::Tensor residual) override {
    Time([&] { of_.Combine(shared, expert_rows, weights, residual); });
  }
  void Head(kernels::Tensor norm, float eps, const kernels::Matrix& head,
            const kernels::StepPlan& plan, kernels::Tensor residual,
            kernels::Tensor logits) override {
    Time([&] { of_.Head(norm, eps, head, plan, residual, logits); });
  }

 private:
  template <class Operation>
  void Time(const Operation& operation) {
    const absl::Time start = RealClock().Now();
    operation();
    time_ += RealClock().Now() - start;
  }

  kernels::Backend& of_;
  absl::Duration time_;
};

struct Loaded {
  model::ModelConfig config;
  std::unique_ptr<model::Checkpoint> checkpoint;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<model::Model> model;
};

Loaded& TheModel(const std::string& folder = "") {
  static Loaded loaded = [&] {
    Loaded all;
    all.config = model::ReadModelConfig(folder).value();
    all.checkpoint = model::Checkpoint::Open(folder).value();
    all.backend = kernels::MakeCpuBackend(kernels::ParseCpuFlags({})).backend;
    all.model = model::Model::Load(all.config, *all.checkpoint, *all.backend).value();
    return all;
  }();
  return loaded;
}

void Step(benchmark::State& state) {
  const auto count = static_cast<int>(state.range(0));
  Loaded& loaded = TheModel();
  TimedBackend timed(*loaded.backend);
  model::LocalExchange exchange(*loaded.model, timed);
  KvPool pool(timed, loaded.model->kv_layout(), loaded.config.layer_count, kPages);
  PageLedger pages(kPages, [&](int32_t page) { pool.ZeroPage(page); });
  const EngineLimits limits{.max_model_len = kPrompt + kMaxTokens};
  Transformer transformer(*loaded.model, timed, exchange, pool,
                          limits.scheduler.max_num_batched_tokens, limits.scheduler.max_logit_rows);
  Engine engine(limits, transformer, pages);
  uint64_t next_id = 0;
  absl::Duration total, operations;
  const auto step = [&] {
    while (engine.Advance() != Engine::Progress::kStepDone) {
    }
  };
  for (auto _ : state) {
    if (!engine.busy()) {
      state.PauseTiming();
      for (int i = 0; i < count; ++i) {
        const uint64_t id = ++next_id;
        v1::StartSequence start = NewStart(id, std::vector<int32_t>(kPrompt, 7), kMaxTokens);
        start.mutable_sampling()->set_temperature(0.9f);
        start.mutable_sampling()->set_top_p(0.95f);
        const absl::Status started = engine.Start(std::move(start));
        if (!started.ok()) return state.SkipWithError(std::string(started.message()).c_str());
      }
      step();  // the prompts
      timed.TakeTime();
      state.ResumeTiming();
    }
    const absl::Time start = RealClock().Now();
    step();
    total += RealClock().Now() - start;
    operations += timed.TakeTime();
  }
  state.counters["beyond"] = absl::FDivDuration(total, operations) - 1;
}
BENCHMARK(Step)->UseRealTime()->Unit(benchmark::kMicrosecond)->Arg(1)->Arg(8)->Arg(kSequencesMax);

}  // namespace
}  // namespace epic::worker

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc != 2) {
    std::fprintf(stderr, "step_benchmark MODEL\n");
    return 1;
  }
  epic::worker::TheModel(argv[1]);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
