// The gRPC service epic.v1.Inference (proto/epic/v1/inference.proto), on the callback API: an open
// stream costs no thread. For a grpc::ServerBuilder:
//
//   std::unique_ptr<grpc::Service> service = NewGrpcInference(context, env.threads);
//   builder.RegisterService(service.get());
//
// Status codes: INVALID_ARGUMENT names field, value and limit; NOT_FOUND an unknown model or
// request; RESOURCE_EXHAUSTED a full queue; UNAVAILABLE not ready or draining; UNAUTHENTICATED a
// missing or wrong "authorization: Bearer KEY" where keys are set.
#pragma once

#include <memory>

#include "base/env.h"
#include "coordinator/frontend/context.h"

namespace grpc {
class Service;
}

namespace epic::coordinator {

// `context` and `threads` outlive the service, and the service outlives the server that it is
// registered with. `thread_count` threads turn tokens into responses.
std::unique_ptr<grpc::Service> NewGrpcInference(const FrontendContext& context, Threads& threads,
                                                int thread_count = 1);

}  // namespace epic::coordinator
