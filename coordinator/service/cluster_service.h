// The gRPC service epic.v1.Cluster: what operators ask.
#pragma once

#include <cstdint>
#include <memory>

#include "coordinator/inference.h"
#include "coordinator/operators.h"

namespace grpc {
class Service;
}

namespace epic::coordinator {

// Both outlive the service, and the service the server that it is registered with.
std::unique_ptr<grpc::Service> NewClusterService(const Inference& inference, Operators& operators,
                                                 uint64_t term);

}  // namespace epic::coordinator
