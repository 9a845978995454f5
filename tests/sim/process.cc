#include "tests/sim/process.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace epic::sim {

namespace {

// Of one map.
constexpr int64_t kNacksMax = 60;
constexpr worker::EngineLimits kEngine{
    .scheduler = {.max_num_batched_tokens = 12, .max_num_seqs = 4, .max_logit_rows = 8},
    .max_model_len = 400};
// Small, so that tiles and frames are cut often.
constexpr worker::ExchangeLimits kExchange{.tile_rows_max = 4, .answer_bytes_max = 48};
// Longer than a drain takes in a world that can do without the rank, and than the coordinator waits
// before it moves requests; shorter than the patience of the judges.
constexpr absl::Duration kLeaveTime = absl::Seconds(2);

v1::WorkerIdentity IdentityOf(const ProcessOptions& options) {
  v1::WorkerIdentity identity;
  identity.set_attention(options.attention);
  identity.set_experts(options.experts);
  identity.set_profile("toy");
  identity.set_checkpoint("toy");
  identity.set_host(absl::StrCat("host", options.machine));
  identity.set_address(absl::StrCat("seat:", options.seat));
  identity.set_expert_slots(options.slots);
  identity.set_layer_count(kToyLayers);
  identity.set_first_expert_layer(kFirstExpertLayer);
  identity.set_expert_count(options.expert_count);
  return identity;
}

}  // namespace

Process::Process(SimLoop& clock, SimNetwork& network, const ProcessOptions& options,
                 ProcessHandlers handlers)
    : clock_(clock),
      dice_(options.seed),
      options_(options),
      handlers_(std::move(handlers)),
      slowness_(options.slowness),
      starts_at_(clock.Now() + options.start_time),
      loop_(clock, [this](absl::Time when) { WakeAt(when); }),
      random_(dice_.Next()),
      transport_(network, options.seat, dice_.Next(), [this] { Wake(); }),
      slots_(clock, options.slots, options.load_time),
      policy_(ToyShape(options.expert_count), kExchange, clock, transport_, slots_,
              options.experts),
      model_(policy_.exchange(), options.expert_count, std::max(1, options.pages),
             handlers_.violation),
      pages_(std::max(1, options.pages), [this](int32_t page) { model_.ErasePage(page); }),
      engine_(kEngine, model_, pages_),
      rank_({clock, loop_, random_, RealThreads()}, IdentityOf(options),
            [this](v1::ControlHello hello, cluster::ControlLinkHandlers link) {
              return handlers_.dial(loop_, std::move(hello), std::move(link));
            },
            policy_, {.asks_to_leave = true, .leave_time = kLeaveTime},
            {.on_welcome = [this](int rank, uint64_t generation) {
              number_ = rank;
              transport_.SetSelf(rank, generation);
            }}) {}

Process::~Process() { *alive_ = false; }

void Process::Hang(absl::Duration lasts) {
  hung_until_ = std::max(hung_until_, clock_.Now() + lasts);
}

void Process::Terminate() {
  loop_.Post([this] { rank_.Drain(); });
}

// Turns that were planned for later find nothing to do.
void Process::WakeAt(absl::Time when) {
  when = std::max(when, hung_until_);
  if (when >= next_turn_) return;
  next_turn_ = when;
  clock_.At(when, [this, alive = alive_, when] {
    if (!*alive || next_turn_ != when) return;
    next_turn_ = absl::InfiniteFuture();
    if (hangs()) return WakeAt(hung_until_);
    Turn();
  });
}

// What epic-worker does once around, and the judges.
void Process::Turn() {
  if (rank_.over()) return;
  loop_.RunDue();
  transport_.Poll();
  if (!serves_ && options_.attention && clock_.Now() >= starts_at_) StartServing();
  const bool queued = exchange().serving();
  const int64_t served_before = policy_.turns_served();
  rank_.Turn();
  // The lemma: whatever this rank itself waits for, what has arrived for its experts is served.
  if (queued && policy_.turns_served() == served_before) {
    handlers_.violation("rows are queued and serving them waits");
  }
  Judge();
  if (!rank_.over()) return PlanTurn();
  if (!rank_.status().ok()) handlers_.violation(std::string(rank_.status().message()));
  handlers_.on_end();
}

void Process::PlanTurn() {
  const absl::Time now = clock_.Now();
  const absl::Duration wait = rank_.wait_max();
  absl::Time next = now + wait;
  if (wait == absl::ZeroDuration()) {
    next = now + dice_.Between(absl::Microseconds(100), absl::Microseconds(600)) * slowness_;
    // Nothing else goes on while an expert is loaded.
    if (slots_.loading()) next = std::max(next, slots_.due());
    return WakeAt(next);
  }
  if (!serves_ && options_.attention) next = std::min(next, starts_at_);
  WakeAt(std::min(next, loop_.next_timer()));
}

void Process::StartServing() {
  serves_ = true;
  v1::WorkerReady ready;
  ready.set_profile("toy");
  ready.set_checkpoint("toy");
  ready.set_kv_page_count(pages_.page_count());
  ready.set_max_model_len(kEngine.max_model_len);
  rank_.Serve(engine_, model_, std::move(ready));
}

void Process::Judge() {
  const worker::ExchangeCounters& counters = exchange().counters();
  const worker::ServerCounters& served = exchange().served();
  const int64_t refused = counters.bad_frames + served.refused_bad_frame +
                          served.refused_no_credit + served.refused_revoked;
  if (counters.stale_frames + refused > 0) {
    handlers_.violation(absl::StrCat("of honest ranks, ", counters.stale_frames,
                                     " frames were stale and ", refused, " refused"));
  }
  const cluster::MapVersion version = exchange().map().version;
  if (version < map_seen_ && version != cluster::MapVersion{}) {
    handlers_.violation(absl::StrCat("map ", version.number, " follows map ", map_seen_.number));
  }
  if (version != map_seen_) nacks_before_map_ = counters.nacks_received;
  // Each expert of each host once, at most.
  if (counters.nacks_received - nacks_before_map_ > kNacksMax) {
    handlers_.violation("the same rows go to a host that has refused them");
  }
  map_seen_ = std::max(version, map_seen_);
  if (rank_.asleep_with_work() > absl::ZeroDuration()) {
    handlers_.violation("the rank slept although it had work");
  }
}

}  // namespace epic::sim
