// The CUDA backend's operations over the emulated device, against kernels/reference; whole steps
// are in test/backend_test.cc.
#include "kernels/cuda/cuda_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>

#include "kernels/cuda/test/backend_shape.h"
#include "kernels/number.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/testing/toy_model.h"

namespace epic::kernels::cuda {
namespace {

std::unique_ptr<Backend> Emulated(CudaOptions options = {}) {
  CudaBackendResult made = MakeCudaBackend(options);
  EXPECT_EQ(made.error, "");
  EXPECT_THAT(made.notes, testing::IsEmpty());
  return std::move(made.backend);
}

// One operation on both backends, from the same values.
class Operations : public testing::TestWithParam<DType> {
 protected:
  // A tensor in each backend's memory.
  struct Pair {
    Tensor of[2];
    Tensor& device() { return of[0]; }
    Tensor& reference() { return of[1]; }
  };

  DType dtype() const { return GetParam(); }
  ToyMatrix Weight(int64_t rows, int64_t cols) { return ToyMatrix(random_, dtype(), rows, cols); }
  std::vector<float> Values(int64_t count, float range) {
    std::vector<float> values(count);
    for (float& value : values) value = random_.Real(range);
    return values;
  }

  Pair Upload(DType dtype, int64_t rows, int64_t cols, const void* data) {
    Pair pair;
    for (int i = 0; i < 2; ++i) {
      memory_.push_back(
          backends_[i]->Allocate(rows * cols * DTypeBytes(dtype), MemoryUse::kTraffic));
      pair.of[i] = {dtype, rows, cols, memory_.back()->data()};
      backends_[i]->Write(pair.of[i].As<std::byte>(), data, pair.of[i].bytes());
    }
    return pair;
  }
  Pair Random(DType dtype, int64_t rows, int64_t cols) {
    const std::vector<float> values = Values(rows * cols, 1);
    std::vector<BF16> rounded;
    for (const float value : values) rounded.push_back(ToBF16(value));
    return dtype == DType::kBF16 ? Upload(dtype, rows, cols, rounded.data())
                                 : Upload(dtype, rows, cols, values.data());
  }

  template <typename Run>
  void OnBoth(const Run& run) {
    for (int i = 0; i < 2; ++i) {
      run(*backends_[i], i);
      backends_[i]->Wait();
    }
  }

  // Relative error of the device's values.
  static double Error(const Pair& pair) {
    const auto read = [](const Tensor& tensor, int64_t i) {
      return tensor.dtype == DType::kBF16 ? ToFloat(tensor.As<BF16>()[i]) : tensor.As<float>()[i];
    };
    double error = 0, size = 0;
    for (int64_t i = 0; i < pair.of[0].rows * pair.of[0].cols; ++i) {
      error += std::pow(read(pair.of[0], i) - read(pair.of[1], i), 2);
      size += std::pow(read(pair.of[1], i), 2);
    }
    return std::sqrt(error / size);
  }
  static bool Same(const Pair& pair) {
    return std::memcmp(pair.of[0].data, pair.of[1].data, pair.of[0].bytes()) == 0;
  }

  kernels::Random random_{5};
  const std::unique_ptr<Backend> backends_[2] = {Emulated(),
                                                 MakeReferenceBackend({.fp8_activations = true})};
  std::vector<std::unique_ptr<Memory>> memory_;
};

INSTANTIATE_TEST_SUITE_P(Weights, Operations, testing::Values(DType::kBF16, DType::kF8E4M3));

TEST_P(Operations, MlpsHaveTheBitsOfTheReference) {
  ToyMatrix gate = Weight(144, 272), up = Weight(144, 272), down = Weight(272, 144);
  const Pair x = Random(DType::kBF16, 19, 272);
  const Pair out = Random(DType::kBF16, 19, 272);
  OnBoth([&](Backend& backend, int i) {
    const auto mlp = backend.LoadMlp(gate.source(), up.source(), down.source());
    backend.ApplyMlp(*mlp, x.of[i], out.of[i]);
    backend.Wait();
  });
  EXPECT_TRUE(Same(out));
}

// Pairs in any order, for groups that are alike and for one that has nearly all; rows and answers
// in the backend's memory and in the process's.
TEST_P(Operations, ExpertsHaveTheBitsOfTheReferenceWhereverRowsLie) {
  constexpr int kRows = 150, kHidden = 48, kWidth = 32;
  std::vector<ToyMatrix> matrices;
  for (int e = 0; e < 4; ++e) {
    matrices.push_back(Weight(kWidth, kHidden));
    matrices.push_back(Weight(kWidth, kHidden));
    matrices.push_back(Weight(kHidden, kWidth));
  }
  const Pair x = Random(DType::kBF16, kRows, kHidden);
  for (const bool even : {true, false}) {
    std::vector<ExpertRow> pairs;
    const int count = even ? 9 : kRows + 6;
    for (int i = 0; i < count; ++i) {
      const bool rare = even || i >= kRows;
      pairs.push_back({random_.Integer(0, kRows - 1), rare ? i % 3 * (i % 3 + 1) / 2 : 0});
    }
    const Pair out = Random(DType::kBF16, count, kHidden);
    std::vector<BF16> elsewhere(count * kHidden);
    OnBoth([&](Backend& backend, int i) {
      std::vector<std::unique_ptr<Mlp>> loaded;
      std::vector<const Mlp*> experts;
      for (int e = 0; e < 4; ++e) {
        loaded.push_back(backend.LoadMlp(matrices[3 * e].source(), matrices[3 * e + 1].source(),
                                         matrices[3 * e + 2].source()));
        experts.push_back(e == 2 ? nullptr : loaded.back().get());
      }
      backend.Experts(experts, x.of[i], pairs, out.of[i]);
      backend.Wait();
      const std::vector<BF16> rows(x.of[i].As<BF16>(), x.of[i].As<BF16>() + kRows * kHidden);
      Tensor there = x.of[i];
      there.data = const_cast<BF16*>(rows.data());
      backend.Experts(experts, there, pairs, {DType::kBF16, count, kHidden, elsewhere.data()});
      EXPECT_EQ(std::memcmp(elsewhere.data(), out.of[i].data, out.of[i].bytes()), 0);
    });
    EXPECT_TRUE(Same(out)) << even;
  }
}

TEST_P(Operations, AttentionIsCloseToTheReference) {
  const AttentionShape shape = BackendShape(0).attention;
  ToyMatrix q_a = Weight(shape.q_rank, shape.hidden);
  ToyMatrix q = Weight(shape.heads * (shape.nope_dim + shape.rope_dim), shape.q_rank);
  ToyMatrix kv_a = Weight(shape.kv_rank + shape.rope_dim, shape.hidden);
  ToyMatrix kv_b = Weight(shape.heads * (shape.nope_dim + shape.v_dim), shape.kv_rank);
  ToyMatrix o = Weight(shape.hidden, shape.heads * shape.v_dim);
  const std::vector<float> norm = Values(shape.hidden, 1), q_norm = Values(shape.q_rank, 1),
                           kv_norm = Values(shape.kv_rank, 1);
  constexpr int kRows = 7;
  StepPlan plan = {.pages = {1, 0}};
  plan.sequences.push_back({.row_count = kRows});
  for (int t = 0; t < kRows; ++t) {
    plan.positions.push_back(t);
    plan.token_ids.push_back(0);
    plan.row_sequence.push_back(0);
  }
  Rope rope;
  for (int i = 0; i < shape.rope_dim / 2; ++i) rope.inverse_frequency.push_back(std::exp(-0.3 * i));
  const KvLayout layout = {shape.kv_rank, shape.rope_dim};
  const Pair slab = Random(DType::kBF16, 2, layout.page_bytes() / 2);
  const Pair residual = Random(DType::kF32, kRows, shape.hidden);
  const Pair query = Random(DType::kBF16, kRows, shape.heads * (shape.kv_rank + shape.rope_dim));
  const Pair output = Random(DType::kBF16, kRows, shape.heads * shape.kv_rank);
  OnBoth([&](Backend& backend, int i) {
    const auto attention = backend.LoadAttention({.shape = shape,
                                                  .input_norm = norm,
                                                  .q_a = q_a.source(),
                                                  .q_a_norm = q_norm,
                                                  .q = q.source(),
                                                  .kv_a = kv_a.source(),
                                                  .kv_a_norm = kv_norm,
                                                  .kv_b = kv_b.source(),
                                                  .o = o.source()});
    std::byte* slabs[] = {slab.of[i].As<std::byte>()};
    const KvView kv = {layout, slabs, 2};
    backend.BeginStep(plan, rope);
    backend.AttentionIn(*attention, plan, kv, 0, residual.of[i], query.of[i]);
    backend.Attend(*attention, plan, kv, 0, query.of[i], output.of[i]);
    backend.AttentionOut(*attention, output.of[i], residual.of[i]);
    backend.Wait();
  });
  // Norms add their squares in another order, so that a value may round, or quantise, otherwise.
  for (const auto& [pair, limit] : {std::pair(slab, 0.01), std::pair(query, 0.01),
                                    std::pair(output, 0.02), std::pair(residual, 0.02)}) {
    EXPECT_LT(Error(pair), limit);
  }
}

TEST_P(Operations, EmbedNormCombineAndHeadAreThoseOfTheReference) {
  constexpr int kRows = 5, kHidden = 208, kVocab = 50, kTopK = 3;
  ToyMatrix table(random_, dtype() == DType::kBF16 ? DType::kBF16 : DType::kF32, kVocab, kHidden);
  ToyMatrix head = Weight(kVocab, kHidden);
  const SourceMatrix source = table.source();
  const Pair there = Upload(source.dtype, kVocab, kHidden, source.data);
  const StepPlan plan = {.token_ids = {3, 49, 0, 3, 17},
                         .positions = {0, 1, 2, 3, 4},
                         .row_sequence = {0, 0, 0, 0, 0},
                         .sequences = {{.row_count = kRows}},
                         .pages = {0},
                         .logit_rows = {1, 4}};
  const Pair embedded = Random(DType::kF32, kRows, kHidden);
  const Pair residual = Random(DType::kF32, kRows, kHidden);
  const Pair norm = Random(DType::kF32, 1, kHidden);
  const Pair rows = Random(DType::kBF16, kRows, kHidden);
  const Pair shared = Random(DType::kBF16, kRows, kHidden);
  const Pair answers = Random(DType::kBF16, kRows * kTopK, kHidden);
  const Pair weights = Random(DType::kF32, kRows, kTopK);
  const Pair logits = Random(DType::kF32, 2, kVocab);
  OnBoth([&](Backend& backend, int i) {
    const auto matrix = backend.LoadMatrix(head.source());
    backend.BeginStep(plan, {});
    SourceMatrix embedding = source;
    embedding.data = there.of[i].data;
    backend.Embed(plan, embedding, embedded.of[i]);
    backend.Combine(shared.of[i], answers.of[i], weights.of[i], residual.of[i]);
    backend.Combine(shared.of[i], {}, {}, residual.of[i]);
    backend.Combine({}, answers.of[i], weights.of[i], residual.of[i]);
    backend.Norm(norm.of[i], 1e-6f, residual.of[i], rows.of[i]);
    backend.Head(norm.of[i], 1e-6f, *matrix, plan, residual.of[i], logits.of[i]);
    backend.Wait();
  });
  EXPECT_TRUE(Same(embedded));
  EXPECT_TRUE(Same(residual));
  EXPECT_LT(Error(rows), 1e-3);
  EXPECT_LT(Error(logits), 1e-2);
}

TEST_P(Operations, RoutersOfAnyTypeChooseAsTheReference) {
  constexpr int kRows = 40, kHidden = 208;
  for (const DType router_type : {DType::kBF16, DType::kF32, DType::kF16}) {
    const GateShape shape = BackendShape(dtype() == DType::kBF16 ? 0 : 1).gate;
    ToyMatrix router(random_, router_type, shape.experts, kHidden);
    const std::vector<float> bias = Values(shape.experts, 0.1f);
    const Pair rows = Random(DType::kBF16, kRows, kHidden);
    const Pair experts = Random(DType::kF32, kRows, shape.top_k);
    const Pair weights = Random(DType::kF32, kRows, shape.top_k);
    const Pair faults = Random(DType::kF32, kRows, 1);
    OnBoth([&](Backend& backend, int i) {
      const auto gate = backend.LoadGate(shape, router.source(), bias);
      const auto as = [&](const Pair& pair, DType dtype) {
        Tensor tensor = pair.of[i];
        tensor.dtype = dtype;
        return tensor;
      };
      backend.ChooseExperts(
          *gate, {rows.of[i], as(experts, DType::kI32), weights.of[i], as(faults, DType::kU8)});
      backend.Wait();
      for (int t = 0; t < kRows; ++t) EXPECT_EQ(faults.of[i].As<uint8_t>()[t], 0);
    });
    EXPECT_TRUE(Same(experts));
    // A BF16 router is one chain of products, others are a sum of two or three.
    EXPECT_EQ(Same(weights), router_type == DType::kBF16);
    EXPECT_LT(Error(weights), 1e-6);
  }
}

TEST(CudaBackend, NamesWhatFixesItsBits) {
  EXPECT_EQ(Emulated({.kv_type = KvType::kFP8})->profile(),
            "epic-numerics-3/sm90-emulated/w:checkpoint,a:checkpoint,kv:fp8/absorbed/split512");
}

TEST(CudaBackend, RefusesACardThatIsNotThere) {
  const CudaBackendResult made = MakeCudaBackend({.ordinal = 1});
  EXPECT_EQ(made.backend, nullptr);
  EXPECT_THAT(made.error, testing::HasSubstr("card 1"));
}

std::unique_ptr<Backend> Eager() { return Emulated({.graphs = false}); }
const OperationGraphs& GraphsOf(const Backend& backend) {
  return static_cast<const CudaBackend&>(backend).graphs();
}

// Steps of one bucket, with prompts among them, other pages and other experts each time; one that
// makes scratch memory move, after which launches have other addresses and are recorded anew; then
// another bucket.
TEST(Graphs, StepsOfABucketAreReplayedWithTheirBits) {
  const Schedule schedule = {
      {{0, 3}},         {{0, 1}, {1, 2}}, {{1, 4}, {0, 1}},  {{2, 1}},  {{1, 40}}, {{1, 1}, {2, 2}},
      {{2, 1}, {1, 1}}, {{2, 9}, {0, 9}}, {{1, 10}, {0, 7}}, {{0, 17}}, {{2, 17}}};
  const ToyModel model(BackendShape(1), 21);
  const auto backend = Emulated({.kv_type = KvType::kFP8});
  const auto eager = Emulated({.kv_type = KvType::kFP8, .graphs = false});
  ToyRun run(model, *backend, 3, 64), expected(model, *eager, 3, 64);
  for (const auto& chunks : schedule) {
    run.Step(chunks);
    expected.Step(chunks);
  }
  EXPECT_EQ(run.logits(), expected.logits());
  EXPECT_GT(GraphsOf(*backend).recorded(), 8);
  EXPECT_GT(GraphsOf(*backend).replayed(), 5);
  EXPECT_EQ(GraphsOf(*eager).recorded(), 0);
  // Rows that fill a bucket leave no record: what was never written is as it was.
  for (int layer = 0; layer < 2; ++layer) {
    EXPECT_THAT(run.Record(layer, 0, 63), testing::Each(std::byte{0xff}));
    EXPECT_THAT(run.Record(layer, 2, 0), testing::Not(testing::Each(std::byte{0xff})));
  }
}

// What one recording of splits serves: any number of them, but none without.
TEST(Graphs, ASequenceGrowsPastASplit) {
  ToyShape shape = BackendShape(0);
  shape.gate.experts = 2;
  shape.gate.top_k = 1;
  shape.attention.hidden = 32;
  shape.attention.heads = 1;
  shape.intermediate = 16;
  const ToyModel model(shape, 3);
  const auto backend = Emulated(), eager = Eager();
  Schedule schedule = {{{0, 509}}, {{1, 3}}};
  for (int i = 0; i < 6; ++i) schedule.push_back({{0, 1}, {1, 1}});
  const Logits logits = RunAll(model, *backend, schedule);
  EXPECT_EQ(logits, RunAll(model, *eager, schedule));
  EXPECT_GT(GraphsOf(*backend).replayed(), 10);
}

TEST_P(Operations, AReplayFindsTheExpertsOfNow) {
  constexpr int kRows = 5, kHidden = 48, kWidth = 32;
  const Pair x = Random(DType::kBF16, kRows, kHidden);
  const Pair out = Random(DType::kBF16, 2 * kRows, kHidden);
  for (int round = 0; round < 6; ++round) {
    std::vector<ToyMatrix> matrices;
    for (int e = 0; e < 3; ++e) {
      matrices.push_back(Weight(kWidth, kHidden));
      matrices.push_back(Weight(kWidth, kHidden));
      matrices.push_back(Weight(kHidden, kWidth));
    }
    // 9 or 10 pairs, of two or three experts.
    std::vector<ExpertRow> pairs;
    for (int i = 0; i < 9 + round % 2; ++i) pairs.push_back({i / 2, i % (2 + round % 2)});
    OnBoth([&](Backend& backend, int i) {
      std::vector<std::unique_ptr<Mlp>> loaded;
      std::vector<const Mlp*> experts;
      for (int e = 0; e < 3; ++e) {
        loaded.push_back(backend.LoadMlp(matrices[3 * e].source(), matrices[3 * e + 1].source(),
                                         matrices[3 * e + 2].source()));
        experts.push_back(loaded.back().get());
      }
      backend.Experts(experts, x.of[i], pairs, out.of[i].Slice(0, std::ssize(pairs)));
      backend.Wait();
    });
    EXPECT_TRUE(Same(out)) << round;
  }
  EXPECT_EQ(GraphsOf(*backends_[0]).recorded(), 1);
  EXPECT_EQ(GraphsOf(*backends_[0]).replayed(), 4);
}

// As many pairs and groups as one recording has room for, in numbers that lay its tables out in
// different lengths.
TEST_P(Operations, AReplayFindsItsTablesForAnyNumberOfExperts) {
  constexpr int kExperts = 128, kHidden = 16, kWidth = 16;
  std::vector<std::unique_ptr<Mlp>> loaded[2];
  for (int e = 0; e < kExperts; ++e) {
    ToyMatrix gate = Weight(kWidth, kHidden), up = Weight(kWidth, kHidden),
              down = Weight(kHidden, kWidth);
    OnBoth([&](Backend& backend, int i) {
      loaded[i].push_back(backend.LoadMlp(gate.source(), up.source(), down.source()));
    });
  }
  const Pair x = Random(DType::kBF16, kExperts, kHidden);
  const Pair out = Random(DType::kBF16, kExperts, kHidden);
  for (const int count : {70, 70, 70, 100, 65, 128}) {
    std::vector<ExpertRow> pairs;
    for (int i = 0; i < count; ++i) pairs.push_back({i, kExperts - 1 - i});
    OnBoth([&](Backend& backend, int i) {
      std::vector<const Mlp*> experts;
      for (const auto& mlp : loaded[i]) experts.push_back(mlp.get());
      backend.Experts(experts, x.of[i], pairs, out.of[i].Slice(0, count));
      backend.Wait();
    });
    EXPECT_TRUE(Same(out)) << count;
  }
  EXPECT_GT(GraphsOf(*backends_[0]).replayed(), 2);
}

// A tile that errs: the product of its rows is off by as much as `error`, for few or many rows.
TileProduct Wrong(GemmType type, int tile, bool beside_many, float error) {
  return [=](Stream stream, const BlockGemmArguments& a) {
    BlockGemm(stream, a);
    if (a.type != type || a.row_tile != tile || (a.rows > 64) != beside_many) return;
    stream.queue->Push([=](uint64_t) { static_cast<float*>(a.out)[3] += error; });
  };
}

TEST(TileTest, ATileThatErrsIsNotUsedAndIsNamed) {
  struct Case {
    GemmType type;
    int tile;
    bool beside_many;
    float error;
    const char* line;
  };
  for (const Case& c :
       {Case{GemmType::kE4M3, 32, false, 1.0f, "FP8 tile of 32 rows is not used: it gives wrong"},
        Case{GemmType::kBF16, 16, true, 1e-4f,
             "BF16 tile of 16 rows is not used: it gives a row "
             "other bits beside other rows"},
        Case{GemmType::kBF16, 128, false, 1e-4f, "BF16 tile of 128 rows"}}) {
    std::string error;
    const CudaBackendResult made = MakeBackendOn(DeviceRuntime::Open(0, error), {},
                                                 Wrong(c.type, c.tile, c.beside_many, c.error));
    EXPECT_NE(made.backend, nullptr);
    EXPECT_THAT(made.notes, testing::ElementsAre(testing::StartsWith(c.line)));
  }
}

TEST(TileTest, WithoutItsTileABackendComputesTheSameBits) {
  const ToyModel model(BackendShape(1), 3);
  const Schedule schedule = {{{0, 3}}, {{0, 1}, {1, 2}}};
  const Logits expected = RunAll(model, *Emulated(), schedule);
  std::string error;
  const CudaBackendResult made =
      MakeBackendOn(DeviceRuntime::Open(0, error), {}, Wrong(GemmType::kE4M3, 16, false, 1.0f));
  EXPECT_EQ(RunAll(model, *made.backend, schedule), expected);
}

TEST(TileTest, WithoutAnyTileThereIsNoBackend) {
  std::string error;
  const CudaBackendResult made =
      MakeBackendOn(DeviceRuntime::Open(0, error), {}, [](Stream, const BlockGemmArguments&) {});
  EXPECT_EQ(made.backend, nullptr);
  EXPECT_THAT(made.error, testing::HasSubstr("every tile"));
  EXPECT_EQ(made.notes.size(), 8u);
}

TEST(TileTest, RowsGoToTheSmallestTileThatHoldsThem) {
  std::string error;
  const auto runtime = DeviceRuntime::Open(0, error);
  DeviceHeap heap(*runtime);
  const TileChoice tiles = TileChoice::Test(heap, Wrong(GemmType::kBF16, 32, false, 1.0f));
  const auto tile = [&](GemmType type, int rows) {
    return tiles.For(type, GemmLayout::kDense, rows);
  };
  EXPECT_EQ(tile(GemmType::kE4M3, 17), 32);
  EXPECT_EQ(tile(GemmType::kBF16, 16), 16);
  EXPECT_EQ(tile(GemmType::kBF16, 17), 64);
  EXPECT_EQ(tile(GemmType::kBF16, 500), 128);
  EXPECT_EQ(tiles.For(GemmType::kBF16, GemmLayout::kContiguous, 1), 128);
}

TEST(CudaShape, ScratchOfALargeModelIsBounded) {
  const CudaModelShape v3 = {.hidden = 7168,
                             .q_rank = 1536,
                             .kv_rank = 512,
                             .nope_dim = 128,
                             .rope_dim = 64,
                             .v_dim = 128,
                             .heads = 128,
                             .vocab = 129280,
                             .intermediates = {18432, 2048},
                             .gate = {.experts = 256, .top_k = 8}};
  const int64_t decode = CudaScratchBytes(v3, 64, 64);
  const int64_t prefill = CudaScratchBytes(v3, 2048, 512);
  EXPECT_GT(decode, int64_t{1} << 30);
  EXPECT_GT(prefill, decode + (int64_t{1} << 30));
  EXPECT_LT(prefill, int64_t{6} << 30);
}

TEST(CudaShape, NamesTheLimitThatAModelBreaks) {
  CudaModelShape shape = {.hidden = 7168,
                          .q_rank = 1536,
                          .kv_rank = 512,
                          .nope_dim = 128,
                          .rope_dim = 64,
                          .v_dim = 128,
                          .intermediates = {18432, 2048},
                          .gate = {.experts = 256, .top_k = 8, .groups = 8, .kept_groups = 4}};
  EXPECT_EQ(CudaShapeProblem(shape), "");
  shape.intermediates.push_back(2050);
  EXPECT_EQ(CudaShapeProblem(shape),
            "intermediate_size is 2050; the CUDA kernels take multiples of 16");
  shape.gate.experts = 1024;
  shape.intermediates.clear();
  EXPECT_THAT(CudaShapeProblem(shape), testing::HasSubstr("n_routed_experts is 1024"));
  shape.kv_rank = 256;
  EXPECT_THAT(CudaShapeProblem(shape), testing::HasSubstr("kv_lora_rank is 256"));
}

}  // namespace
}  // namespace epic::kernels::cuda
