// Sixteen floats at a time, in GCC's vector extensions: the compiler makes of them what the target has.
#pragma once
#include <cstdint>
#include <cstring>

namespace readapt {

constexpr int64_t LANES = 16;
typedef float f32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

struct bf16 {
  uint16_t bits;
};

inline f32x16 load(const float* p) {
  f32x16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, f32x16 v) { std::memcpy(p, &v, sizeof v); }

inline f32x16 load(const bf16* p) {
  u16x16 half;
  std::memcpy(&half, p, sizeof half);
  u32x16 wide = __builtin_convertvector(half, u32x16) << 16;
  f32x16 v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}
// To the nearest, ties to even, as torch rounds; a NaN stays one.
inline void store(bf16* p, f32x16 v) {
  u32x16 wide;
  std::memcpy(&wide, &v, sizeof wide);
  u32x16 rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  auto is_nan = v != v;
  rounded = is_nan ? (u32x16{} + 0x7fc0) : rounded;
  u16x16 half = __builtin_convertvector(rounded, u16x16);
  std::memcpy(p, &half, sizeof half);
}

inline float get(float x) { return x; }
inline float get(bf16 x) {
  uint32_t wide = uint32_t(x.bits) << 16;
  float v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}
inline void put(float* p, float x) { *p = x; }
inline void put(bf16* p, float x) {
  uint32_t wide;
  std::memcpy(&wide, &x, sizeof wide);
  p->bits = x != x ? 0x7fc0 : uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}
// What is left of x after it was stored.
template <class T> inline float rounded(float x) {
  T kept;
  put(&kept, x);
  return get(kept);
}

inline f32x16 splat(float x) { return f32x16{} + x; }
inline float sum(f32x16 v) {
  typedef int32_t lanes __attribute__((vector_size(64)));
  v += __builtin_shuffle(v, lanes{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
  v += __builtin_shuffle(v, lanes{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
  v += __builtin_shuffle(v, lanes{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
  v += __builtin_shuffle(v, lanes{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
  return v[0];
}

// All ones where a lane is NaN or infinite.
inline u32x16 not_finite(f32x16 v) {
  u32x16 bits;
  std::memcpy(&bits, &v, sizeof bits);
  return (u32x16)((bits & 0x7f800000u) == (u32x16{} + 0x7f800000u));
}

inline float max(f32x16 v) {
  typedef int32_t lanes __attribute__((vector_size(64)));
  f32x16 o = __builtin_shuffle(v, lanes{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
  v = v > o ? v : o;
  o = __builtin_shuffle(v, lanes{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
  v = v > o ? v : o;
  o = __builtin_shuffle(v, lanes{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
  v = v > o ? v : o;
  o = __builtin_shuffle(v, lanes{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
  v = v > o ? v : o;
  return v[0];
}

// e^x by 2^n * e^r, |r| <= ln(2)/2, with a polynomial (Cephes' expf); relative error about 1e-7.
inline f32x16 exp(f32x16 x) {
  typedef int32_t ints __attribute__((vector_size(64)));
  x = x > 88.0f ? splat(88.0f) : x;
  f32x16 clamped = x < -87.0f ? splat(-87.0f) : x;
  ints whole = __builtin_convertvector(clamped * 1.44269504f + (clamped < 0.0f ? splat(-0.5f) : splat(0.5f)), ints);
  f32x16 n = __builtin_convertvector(whole, f32x16);
  f32x16 r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  f32x16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  ints exponent = (whole + 127) << 23;
  f32x16 power;
  std::memcpy(&power, &exponent, sizeof power);
  return x < -87.0f ? f32x16{} : p * power;
}

}  // namespace readapt
