// Sixteen floats at a time, in GCC's vector extensions: the compiler makes of them what the target has.
#pragma once
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
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
inline u32x16 round_to_bf16(f32x16 v) {
  u32x16 wide;
  std::memcpy(&wide, &v, sizeof wide);
  u32x16 rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  auto is_nan = v != v;
  return is_nan ? (u32x16{} + 0x7fc0) : rounded;
}
inline void store(bf16* p, f32x16 v) {
  u16x16 half = __builtin_convertvector(round_to_bf16(v), u16x16);
  std::memcpy(p, &half, sizeof half);
}

// Thirty-two bfloat16 as they lie, two to a word.
inline u32x16 load_words(const bf16* p) {
  u32x16 words;
  std::memcpy(&words, p, sizeof words);
  return words;
}
inline f32x16 low(u32x16 words) { return (f32x16)(words << 16); }
inline f32x16 high(u32x16 words) { return (f32x16)(words & 0xffff0000u); }

// acc + a.low * b.low + a.high * b.high
inline f32x16 dot_pairs(f32x16 acc, u32x16 a, u32x16 b) {
#ifdef __AVX512BF16__
  return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  acc += low(a) * low(b);
  return acc + high(a) * high(b);
#endif
}

// What a line of the cache holds.
template <class T> constexpr int64_t LINE = 64 / sizeof(T);
// Sixteen sums of products, which together are that of two lines with each other.
inline f32x16 add_products(f32x16 acc, const float* a, const float* b) { return acc + load(a) * load(b); }
inline f32x16 add_products(f32x16 acc, const bf16* a, const bf16* b) {
  return dot_pairs(acc, load_words(a), load_words(b));
}

// Thirty-two elements, in the order in which they come apart most cheaply; the same for all that have one type.
struct Both {
  f32x16 first, second;
};
inline Both load_both(const float* p) { return {load(p), load(p + LANES)}; }
inline Both load_both(const bf16* p) {
  u32x16 words = load_words(p);
  return {low(words), high(words)};
}
inline void store_both(float* p, Both v) {
  store(p, v.first);
  store(p + LANES, v.second);
}
inline void store_both(bf16* p, Both v) {
  u32x16 words = round_to_bf16(v.first) | round_to_bf16(v.second) << 16;
  std::memcpy(p, &words, sizeof words);
}

// Asks for a line of memory. Into the second level: the first has too few places for lines on their way.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

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

// e^x by 2^n * e^r, |r| <= ln(2)/2, with a polynomial (Cephes' expf); relative error about 1e-7. For any width.
template <class Floats> inline Floats exp(Floats x) {
  typedef decltype(x < x) ints;
  Floats zero{};
  x = x > 88.0f ? zero + 88.0f : x;
  Floats clamped = x < -87.0f ? zero - 87.0f : x;
  ints whole = __builtin_convertvector(clamped * 1.44269504f + (clamped < 0.0f ? zero - 0.5f : zero + 0.5f), ints);
  Floats n = __builtin_convertvector(whole, Floats);
  Floats r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = zero + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  ints exponent = (whole + 127) << 23;
  Floats power;
  std::memcpy(&power, &exponent, sizeof power);
  return x < -87.0f ? zero : p * power;
}

// What one register holds. GCC takes comparisons of wider vectors apart into single lanes, so loops that compare use these.
#if defined(__AVX512F__)
constexpr int64_t NATIVE = 16;
#elif defined(__AVX2__)
constexpr int64_t NATIVE = 8;
#else
constexpr int64_t NATIVE = 4;
#endif
typedef float floats __attribute__((vector_size(4 * NATIVE)));
typedef uint32_t words __attribute__((vector_size(4 * NATIVE)));

inline floats load_native(const float* p) {
  floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline floats load_native(const bf16* p) {
  typedef uint16_t halves __attribute__((vector_size(2 * NATIVE)));
  halves half;
  std::memcpy(&half, p, sizeof half);
  return (floats)(__builtin_convertvector(half, words) << 16);
}
// All ones where a lane is NaN or infinite.
inline words not_finite(floats v) {
  return (words)(((words)v & 0x7f800000u) == words{} + 0x7f800000u);
}
// Whether a lane of a comparison holds.
template <class Mask> inline bool any(Mask mask) {
  uint64_t parts[sizeof mask / 8], found = 0;
  std::memcpy(parts, &mask, sizeof mask);
  for (uint64_t part : parts) found |= part;
  return found != 0;
}

template <int N> struct Count {
  static constexpr int value = N;
};
// Calls work(i, Count<N>) for N of [i, stop) at a time: MOST, and what is left in one go.
template <int MOST, class Work> inline void in_parts(int64_t i, int64_t stop, Work work) {
  for (; stop - i >= MOST; i += MOST) work(i, Count<MOST>{});
  if constexpr (MOST > 1) in_parts<MOST - 1>(i, stop, work);
}

}  // namespace readapt
