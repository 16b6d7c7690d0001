// What a decoder layer does besides matrix products and attention.
#include <cmath>

#include "kernels.h"

using namespace readapt;

namespace {

// hidden += delta; out = hidden / rms(hidden) * weight. One token at a time.
template <class T>
void add_norm(T* hidden, const T* delta, const T* weight, T* out, int64_t tokens, int64_t width, float eps) {
#pragma omp parallel for schedule(static) if (tokens > 1)
  for (int64_t t = 0; t < tokens; ++t) {
    T *h = hidden + t * width, *o = out + t * width;
    const T* d = delta ? delta + t * width : nullptr;
    f32x16 squares{};
    float rest = 0;
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
      if (d) store(h + i, load(h + i) + load(d + i));
      f32x16 v = load(h + i);
      squares += v * v;
    }
    for (; i < width; ++i) {
      if (d) put(h + i, get(h[i]) + get(d[i]));
      rest += get(h[i]) * get(h[i]);
    }
    float scale = 1.0f / std::sqrt((sum(squares) + rest) / float(width) + eps);
    for (i = 0; i + LANES <= width; i += LANES) store(o + i, load(h + i) * splat(scale) * load(weight + i));
    for (; i < width; ++i) put(o + i, get(h[i]) * scale * get(weight[i]));
  }
}

template <class T> void silu_mul(const T* gate_up, T* out, int64_t tokens, int64_t inner) {
#pragma omp parallel for schedule(static) if (tokens > 1)
  for (int64_t t = 0; t < tokens; ++t) {
    const T *gate = gate_up + t * 2 * inner, *up = gate + inner;
    T* o = out + t * inner;
    int64_t i = 0;
    for (; i + LANES <= inner; i += LANES) {
      f32x16 g = load(gate + i);
      store(o + i, g / (1.0f + exp(-g)) * load(up + i));
    }
    for (; i < inner; ++i) put(o + i, get(gate[i]) / (1.0f + std::exp(-get(gate[i]))) * get(up[i]));
  }
}

// Norm of one head, in place, in float32 (Qwen3); weight may be null.
template <class T> void head_norm(T* x, const T* weight, int64_t dim, float eps) {
  float squares = 0;
  for (int64_t i = 0; i < dim; ++i) squares += get(x[i]) * get(x[i]);
  float scale = 1.0f / std::sqrt(squares / float(dim) + eps);
  for (int64_t i = 0; i < dim; ++i) put(x + i, rounded<T>(get(x[i]) * scale) * get(weight[i]));
}

// Pairs (i, i + dim/2), in place.
template <class T> void rotate(T* x, const T* cos, const T* sin, int64_t dim) {
  int64_t half = dim / 2;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    float a = get(x[i]), b = get(x[i + half]);
    put(x + i, a * get(cos[i]) - b * get(sin[i]));
    put(x + i + half, b * get(cos[i + half]) + a * get(sin[i + half]));
  }
}

template <class T>
void rotate_write(T* qkv, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, const T* cos, const T* sin,
                  const int64_t* positions, const int64_t* page_of, int64_t block, T* pool, int64_t page_stride,
                  int64_t value_offset, int64_t head_stride, const T* q_norm, const T* k_norm,
                  float eps) {
#pragma omp parallel for schedule(static) if (tokens > 1)
  for (int64_t t = 0; t < tokens; ++t) {
    T* q = qkv + t * (heads + 2 * kv_heads) * dim;
    T *k = q + heads * dim, *v = k + kv_heads * dim;
    const T *c = cos ? cos + positions[t] * dim : nullptr, *s = sin ? sin + positions[t] * dim : nullptr;
    for (int64_t h = 0; h < heads; ++h) {
      if (q_norm) head_norm(q + h * dim, q_norm, dim, eps);
      if (c) rotate(q + h * dim, c, s, dim);
    }
    int64_t slot = positions[t] % block;
    T* page = pool + page_of[t] * page_stride;
    for (int64_t h = 0; h < kv_heads; ++h) {
      if (k_norm) head_norm(k + h * dim, k_norm, dim, eps);
      if (c) rotate(k + h * dim, c, s, dim);
      T *keys = page + h * head_stride, *values = keys + value_offset;
      for (int64_t i = 0; i < dim; ++i) keys[i * block + slot] = k[h * dim + i];
      std::memcpy(values + slot * dim, v + h * dim, dim * sizeof(T));
    }
  }
}

// First largest of each row, and whether every logit of the row is finite.
template <class T> void argmax(const T* logits, int64_t rows, int64_t vocab, int64_t* best, int64_t* finite) {
#pragma omp parallel for schedule(static) if (rows > 1)
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = logits + r * vocab;
    float largest = -INFINITY;
    words bad{};
    int64_t at = 0;
    constexpr int64_t STRIP = 1024;
    for (int64_t start = 0; start < vocab; start += STRIP) {
      int64_t stop = start + STRIP < vocab ? start + STRIP : vocab, i = start;
      floats top = floats{} - INFINITY;
      for (; i + NATIVE <= stop; i += NATIVE) {
        floats v = load_native(row + i);
        bad |= not_finite(v);
        top = v > top ? v : top;
      }
      float strip = -INFINITY;
      for (int64_t lane = 0; lane < NATIVE; ++lane) strip = top[lane] > strip ? top[lane] : strip;
      for (; i < stop; ++i) {
        bad |= not_finite(floats{} + get(row[i]));
        strip = get(row[i]) > strip ? get(row[i]) : strip;
      }
      if (strip > largest) {
        largest = strip;
        at = start;
      }
    }
    int64_t stop = at + STRIP < vocab ? at + STRIP : vocab;
    for (; at < stop && get(row[at]) != largest;) ++at;
    best[r] = at < vocab ? at : 0;
    finite[r] = !any(bad);
  }
}

}  // namespace

#define BOTH(NAME, PARAMETERS, ARGUMENTS)                                   \
  EXPORT void readapt_##NAME##_f32 PARAMETERS(float) { NAME<float> ARGUMENTS(float); } \
  EXPORT void readapt_##NAME##_bf16 PARAMETERS(bf16) { NAME<bf16> ARGUMENTS(bf16); }

#define NORM_P(T) (T * hidden, const T* delta, const T* weight, T* out, int64_t tokens, int64_t width, float eps)
#define NORM_A(T) (hidden, delta, weight, out, tokens, width, eps)
BOTH(add_norm, NORM_P, NORM_A)

#define SILU_P(T) (const T* gate_up, T* out, int64_t tokens, int64_t inner)
#define SILU_A(T) (gate_up, out, tokens, inner)
BOTH(silu_mul, SILU_P, SILU_A)

#define ROTATE_P(T)                                                                                               \
  (T * qkv, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, const T* cos, const T* sin,             \
   const int64_t* positions, const int64_t* page_of, int64_t block, T* pool, int64_t page_stride,                 \
   int64_t value_offset, int64_t head_stride, const T* q_norm, const T* k_norm, float eps)
#define ROTATE_A(T)                                                                                            \
  (qkv, tokens, heads, kv_heads, dim, cos, sin, positions, page_of, block, pool, page_stride, value_offset,    \
   head_stride, q_norm, k_norm, eps)
BOTH(rotate_write, ROTATE_P, ROTATE_A)

#define ARGMAX_P(T) (const T* logits, int64_t rows, int64_t vocab, int64_t* best, int64_t* finite)
#define ARGMAX_A(T) (logits, rows, vocab, best, finite)
BOTH(argmax, ARGMAX_P, ARGMAX_A)
