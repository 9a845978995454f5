// ExpertExchange: how a batch's rows reach the experts and come back. The graph in model/ is given
// one and knows no ranks. LocalExchange (model/local_exchange.h) computes in place.
#pragma once

#include "absl/status/status.h"
#include "kernels/tensor.h"

namespace epic::model {

// Rows of one layer of one step on their way to experts. All of it stays unchanged until Finish.
struct ExpertDispatch {
  int layer = 0;
  kernels::Tensor rows;     // BF16 [T, hidden], normed
  kernels::Tensor experts;  // I32 [T, k], ids ascending within a row
  // What Finish will be given; may be written from Begin on.
  kernels::Tensor out;
  bool decode = false;  // all are decode or draft rows: others' experts serve such rows first
};

// One thread at a time. Two phases, so that the shared expert, or the other half of a batch,
// computes while rows travel.
class ExpertExchange {
 public:
  using Ticket = int;

  virtual ~ExpertExchange() = default;

  // Sends the rows off. At most two tickets are open at a time.
  virtual Ticket Begin(const ExpertDispatch& dispatch) = 0;
  // True once Finish will not wait.
  virtual bool Ready(Ticket ticket) = 0;
  // Ends the ticket (which must be ready): out BF16 [T·k, hidden], row t·k+j is the answer of
  // expert experts[t, j] for row t, never pre-summed: the owner sums them in order of expert id.
  virtual absl::Status Finish(Ticket ticket, kernels::Tensor out) = 0;
};

}  // namespace epic::model
