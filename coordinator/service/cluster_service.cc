#include "coordinator/service/cluster_service.h"

#include <grpcpp/grpcpp.h>

#include "proto/epic/v1/cluster.grpc.pb.h"

namespace epic::coordinator {
namespace {

class ClusterService : public v1::Cluster::CallbackService {
 public:
  ClusterService(const Inference& inference, uint64_t term) : inference_(inference), term_(term) {}

  grpc::ServerUnaryReactor* GetState(grpc::CallbackServerContext* context,
                                     const v1::GetStateRequest*,
                                     v1::ClusterState* answer) override {
    const Status status = inference_.status();
    answer->set_term(term_);
    answer->set_ready(status.ready);
    answer->set_reason(status.reason);
    for (const RankStatus& rank : status.ranks) {
      v1::RankState& state = *answer->add_ranks();
      state.set_rank(rank.rank);
      state.set_state(rank.state);
      state.set_description(rank.description);
      state.set_profile(rank.profile);
      state.set_loaded_bytes(rank.loaded_bytes);
      state.set_total_bytes(rank.total_bytes);
      state.set_running(rank.running);
      state.set_waiting(rank.waiting);
      state.set_kv_pages_used(rank.kv_pages_used);
      state.set_kv_page_count(rank.kv_page_count);
      state.set_last_step_age_seconds(absl::ToDoubleSeconds(rank.last_step_age));
    }
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  const Inference& inference_;
  const uint64_t term_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewClusterService(const Inference& inference, uint64_t term) {
  return std::make_unique<ClusterService>(inference, term);
}

}  // namespace epic::coordinator
