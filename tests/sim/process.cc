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

}  // namespace

Process::Process(SimLoop& loop, SimNetwork& network, const ProcessOptions& options,
                 ProcessHandlers handlers)
    : loop_(loop),
      dice_(options.seed),
      options_(options),
      handlers_(std::move(handlers)),
      slowness_(options.slowness),
      generation_(dice_.Next()),
      transport_(network, options.seat, generation_, [this] { Wake(); }),
      slots_(loop, options.slots, options.load_time),
      exchange_(
          ToyShape(options.expert_count), kExchange, loop, network_, slots_,
          {.on_link_up = [this](const cluster::RankEntry& peer) { service_.OnLinkUp(peer); },
           .on_link_down = [this](const cluster::RankEntry& peer,
                                  const absl::Status& why) { service_.OnLinkDown(peer, why); }}),
      model_(exchange_, options.expert_count, std::max(1, options.pages), handlers_.violation),
      pages_(std::max(1, options.pages), [this](int32_t page) { model_.ErasePage(page); }),
      engine_(kEngine, model_, pages_),
      sequences_(loop),
      service_(loop, exchange_, options.experts ? &slots_ : nullptr,
               {.on_revoked = [this](const std::string&) { leaves_ = true; }}),
      starts_at_(loop.Now() + options.start_time),
      next_report_(loop.Now() + cluster::kReportInterval) {}

Process::~Process() { *alive_ = false; }

v1::ControlHello Process::Hello() const {
  v1::ControlHello hello;
  hello.set_generation(generation_);
  v1::WorkerIdentity& identity = *hello.mutable_worker();
  identity.set_attention(options_.attention);
  identity.set_experts(options_.experts);
  identity.set_profile("toy");
  identity.set_checkpoint("toy");
  identity.set_host(absl::StrCat("host", options_.machine));
  identity.set_address(absl::StrCat("seat:", options_.seat));
  identity.set_expert_slots(options_.slots);
  identity.set_expert_bytes(1);
  identity.set_layer_count(kToyLayers);
  identity.set_first_expert_layer(kFirstExpertLayer);
  identity.set_expert_count(options_.expert_count);
  return hello;
}

cluster::ControlLinkHandlers Process::Connect(std::unique_ptr<cluster::ControlLink> link) {
  link_ = std::move(link);
  ++control_messages_;
  service_.Connect(link_.get());
  sequences_.Connect(link_.get());
  Wake();
  const auto ours = [this, alive = alive_, generation = generation_] {
    return *alive && generation == generation_;
  };
  return {.on_message =
              [this, ours](const v1::ControlMessage& message) {
                if (!ours()) return;
                messages_.push_back(message);
                Wake();
              },
          .on_down =
              [this, ours](const absl::Status&) {
                if (!ours()) return;
                leaves_ = true;
                Wake();
              }};
}

void Process::Renew() {
  leaves_ = false;
  rank_ = -1;
  messages_.clear();
  service_.Connect(nullptr);
  sequences_.Connect(nullptr);
  link_.reset();
  generation_ = dice_.Next();
  handlers_.on_renew();
}

void Process::Hang(absl::Duration lasts) {
  hung_until_ = std::max(hung_until_, loop_.Now() + lasts);
}

// Turns that were planned for later find nothing to do.
void Process::WakeAt(absl::Time when) {
  when = std::max(when, hung_until_);
  if (when >= next_turn_) return;
  next_turn_ = when;
  loop_.At(when, [this, alive = alive_, when] {
    if (!*alive || next_turn_ != when) return;
    next_turn_ = absl::InfiniteFuture();
    if (hangs()) return WakeAt(hung_until_);
    Turn();
  });
}

// What the loop of epic-worker does once around.
void Process::Turn() {
  if (over_) return;
  TakeMessages();
  if (leaves_) Renew();
  if (!started_ && options_.attention && loop_.Now() >= starts_at_) StartServing();
  sleep_meter_.Wake(loop_.Now());
  service_.ticks().Tick(!could_go_on_);
  const bool stepping = sequences_.busy();
  sequences_.Advance();
  if (stepping && !sequences_.waiting()) sleep_meter_.Worked(inputs());
  Serve();
  if (service_.loading()) sleep_meter_.Worked(inputs());
  service_.Advance();
  Judge();
  if (sequences_.drained() && rank_ >= 0) return SayGoodbye();
  if (loop_.Now() >= next_report_) Report();
  could_go_on_ = CanGoOn();
  if (!could_go_on_) sleep_meter_.Sleep(loop_.Now(), inputs());
  PlanTurn();
}

void Process::PlanTurn() {
  if (could_go_on_) {
    const auto cost = dice_.Between(absl::Microseconds(100), absl::Microseconds(600));
    absl::Time next = loop_.Now() + cost * slowness_;
    // Nothing else goes on while an expert is loaded.
    if (slots_.loading()) next = std::max(next, slots_.due());
    return WakeAt(next);
  }
  absl::Time next = next_report_;
  if (!started_ && options_.attention) {
    next = std::min(next, std::max(starts_at_, loop_.Now()));
  }
  WakeAt(next);
}

void Process::StartServing() {
  started_ = true;
  v1::WorkerReady ready;
  ready.set_profile("toy");
  ready.set_checkpoint("toy");
  ready.set_kv_page_count(pages_.page_count());
  ready.set_max_model_len(kEngine.max_model_len);
  sequences_.Serve(engine_, std::move(ready));
}

// The lemma: whatever this rank itself waits for, what has arrived for its experts is served.
void Process::Serve() {
  transport_.Poll();
  const bool queued = exchange_.serving();
  const bool served = exchange_.Serve();
  if (served) sleep_meter_.Worked(inputs());
  if (!served && queued) handlers_.violation("rows are queued and serving them waits");
}

void Process::Judge() {
  const worker::ExchangeCounters& counters = exchange_.counters();
  const worker::ServerCounters& served = exchange_.served();
  const int64_t refused = counters.bad_frames + served.refused_bad_frame +
                          served.refused_no_credit + served.refused_revoked;
  if (counters.stale_frames + refused > 0) {
    handlers_.violation(absl::StrCat("of honest ranks, ", counters.stale_frames,
                                     " frames were stale and ", refused, " refused"));
  }
  const cluster::MapVersion version = exchange_.map().version;
  if (version < map_seen_ && version != cluster::MapVersion{}) {
    handlers_.violation(absl::StrCat("map ", version.number, " follows map ", map_seen_.number));
  }
  if (version != map_seen_) nacks_before_map_ = counters.nacks_received;
  // Each expert of each host once, at most.
  if (counters.nacks_received - nacks_before_map_ > kNacksMax) {
    handlers_.violation("the same rows go to a host that has refused them");
  }
  map_seen_ = std::max(version, map_seen_);
  if (sleep_meter_.asleep_with_work() > absl::ZeroDuration()) {
    handlers_.violation("the rank slept although it had work");
  }
}

void Process::TakeMessages() {
  const std::vector<v1::ControlMessage> messages = std::exchange(messages_, {});
  for (const v1::ControlMessage& message : messages) {
    if (!leaves_) OnMessage(message);
  }
}

void Process::OnMessage(const v1::ControlMessage& message) {
  ++control_messages_;
  if (message.has_welcome()) {
    rank_ = message.welcome().rank();
    transport_.SetSelf(rank_, generation_);
  }
  if (!service_.OnMessage(message)) sequences_.OnMessage(message);
}

void Process::SayGoodbye() {
  over_ = true;
  v1::ControlMessage goodbye;
  goodbye.mutable_goodbye();
  if (link_ != nullptr) link_->Send(std::move(goodbye));
  handlers_.on_goodbye();
}

void Process::Report() {
  next_report_ = loop_.Now() + cluster::kReportInterval;
  service_.Report({.computing = sequences_.busy()});
}

}  // namespace epic::sim
