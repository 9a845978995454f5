// A handle that a backend loaded, as the backend's own type.
#pragma once

#include <typeinfo>

#include "kernels/check.h"

namespace epic::kernels {

// `handle` must be an `Own`: one of another backend is a bug of the caller.
template <typename Own, typename Handle>
const Own& HandleAs(const Handle& handle) {
  KERNEL_CHECK(typeid(handle) == typeid(Own), "a handle of another backend: %s, not %s",
               typeid(handle).name(), typeid(Own).name());
  return static_cast<const Own&>(handle);
}

}  // namespace epic::kernels
