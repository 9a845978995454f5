// The bytes of a kernel's arguments, field by field, so that they can be a key. The compiler counts
// the fields of the struct: none can be forgotten, and a new one counts from its first day. Padding
// between fields holds no value and is no part of the key.
//
// T is an aggregate of numbers, enums, pointers and such aggregates, trivially copyable, without
// arrays and bases.
#pragma once

#include <string>
#include <type_traits>

namespace epic::kernels::cuda {

namespace argument_bytes {

// Stands for an initialiser of any type; only ever named in unevaluated code.
struct AnyField {
  template <typename T>
  operator T() const;  // NOLINT
};

// A struct takes at most as many initialisers as it has fields: one more is tried until it is
// refused.
template <typename T, typename... Fields>
constexpr int CountFields() {
  if constexpr (requires { T{Fields{}..., AnyField{}}; }) {
    return CountFields<T, Fields..., AnyField>();
  } else {
    return sizeof...(Fields);
  }
}

}  // namespace argument_bytes

// Appends the bytes of all fields of `value`, nested ones in place.
template <typename T>
void AppendFields(const T& value, std::string& to) {
  static_assert(std::is_trivially_copyable_v<T>);
  if constexpr (!std::is_class_v<T>) {
    // A scalar has no padding, so its bytes are its value.
    static_assert(std::is_scalar_v<T>);
    to.append(reinterpret_cast<const char*>(&value), sizeof(T));
  } else {
    static_assert(std::is_aggregate_v<T>);
    constexpr int kCount = argument_bytes::CountFields<T>();
    static_assert(kCount > 0 && kCount <= 24, "add a line for so many fields");
    const auto append = [&to](const auto&... field) { (AppendFields(field, to), ...); };
// A structured binding needs its number of names, so there is one line for each number.
#define EPIC_APPEND(count, ...)        \
  if constexpr (kCount == (count)) {   \
    const auto& [__VA_ARGS__] = value; \
    append(__VA_ARGS__);               \
  }
    EPIC_APPEND(1, a)
    EPIC_APPEND(2, a, b)
    EPIC_APPEND(3, a, b, c)
    EPIC_APPEND(4, a, b, c, d)
    EPIC_APPEND(5, a, b, c, d, e)
    EPIC_APPEND(6, a, b, c, d, e, f)
    EPIC_APPEND(7, a, b, c, d, e, f, g)
    EPIC_APPEND(8, a, b, c, d, e, f, g, h)
    EPIC_APPEND(9, a, b, c, d, e, f, g, h, i)
    EPIC_APPEND(10, a, b, c, d, e, f, g, h, i, j)
    EPIC_APPEND(11, a, b, c, d, e, f, g, h, i, j, k)
    EPIC_APPEND(12, a, b, c, d, e, f, g, h, i, j, k, l)
    EPIC_APPEND(13, a, b, c, d, e, f, g, h, i, j, k, l, m)
    EPIC_APPEND(14, a, b, c, d, e, f, g, h, i, j, k, l, m, n)
    EPIC_APPEND(15, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o)
    EPIC_APPEND(16, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)
    EPIC_APPEND(17, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q)
    EPIC_APPEND(18, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r)
    EPIC_APPEND(19, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s)
    EPIC_APPEND(20, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t)
    EPIC_APPEND(21, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u)
    EPIC_APPEND(22, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v)
    EPIC_APPEND(23, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w)
    EPIC_APPEND(24, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x)
#undef EPIC_APPEND
  }
}

}  // namespace epic::kernels::cuda
