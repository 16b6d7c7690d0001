// LoRA on one fused linear, all adapters of the step at once: y += scale * (x A^T) B, at each adapter's own rank.
#include <cstdlib>

#include "simd.h"

using namespace readapt;

namespace {

constexpr int64_t RANKS = 8;      // rank rows of one task of the first phase
constexpr int64_t COLUMNS = 128;  // output columns of one task of the second phase
constexpr int64_t ROWS = 4;       // tokens that share a pass over the weights

}  // namespace

// One module of one adapter in one layer; addresses are of contiguous rank rows. See cpu/lora.py.
struct Factors {
  const void* a;  // [rank, in]
  const void* b;  // [rank, size]
  int64_t rank, rank_start, out_start, out_size;
  double scale;
};

// Neighbouring tokens of one adapter; `factors` points at its slices in this layer and linear, rank 0 where none is.
struct Segment {
  const Factors* factors;
  int64_t start, stop;
};

namespace {

template <class T, int N>
inline void dots(const T* const* x, const T* row, int64_t width, float* out) {
  f32x16 acc[N]{};
  float rest[N]{};
  int64_t k = 0;
  for (; k + LANES <= width; k += LANES) {
    f32x16 w = load(row + k);
    for (int n = 0; n < N; ++n) acc[n] += load(x[n] + k) * w;
  }
  for (; k < width; ++k)
    for (int n = 0; n < N; ++n) rest[n] += get(x[n][k]) * get(row[k]);
  for (int n = 0; n < N; ++n) out[n] = rounded<T>(sum(acc[n]) + rest[n]);
}

// bridge[t, r] for rank rows [first, last) of a slice.
template <class T>
void shrink(const Factors& f, int64_t first, int64_t last, const T* x, int64_t in, int64_t start, int64_t stop,
            float* bridge, int64_t bridge_width) {
  for (int64_t t = start; t < stop; t += ROWS) {
    int64_t n = stop - t < ROWS ? stop - t : ROWS;
    const T* rows[ROWS];
    for (int64_t i = 0; i < n; ++i) rows[i] = x + (t + i) * in;
    for (int64_t r = first; r < last; ++r) {
      const T* weights = static_cast<const T*>(f.a) + r * in;
      float found[ROWS];
      switch (n) {
        case 1: dots<T, 1>(rows, weights, in, found); break;
        case 2: dots<T, 2>(rows, weights, in, found); break;
        case 3: dots<T, 3>(rows, weights, in, found); break;
        default: dots<T, 4>(rows, weights, in, found);
      }
      for (int64_t i = 0; i < n; ++i) bridge[(t + i) * bridge_width + f.rank_start + r] = found[i];
    }
  }
}

// y[t, first..last) of a slice's columns.
template <class T>
void expand(const Factors& f, int64_t first, int64_t last, const float* bridge, int64_t bridge_width, T* y,
            int64_t out, int64_t start, int64_t stop) {
  constexpr int VECTORS = COLUMNS / LANES;
  const T* b = static_cast<const T*>(f.b);
  float scale = float(f.scale);
  for (int64_t t = start; t < stop; ++t) {
    const float* in = bridge + t * bridge_width + f.rank_start;
    T* to = y + t * out + f.out_start;
    if (last - first == COLUMNS) {
      f32x16 acc[VECTORS]{};
      for (int64_t r = 0; r < f.rank; ++r) {
        const T* row = b + r * f.out_size + first;
        for (int v = 0; v < VECTORS; ++v) acc[v] += splat(in[r]) * load(row + v * LANES);
      }
      for (int v = 0; v < VECTORS; ++v) {
        T* at = to + first + v * LANES;
        store(at, load(at) + acc[v] * splat(scale));
      }
    } else {
      float acc[COLUMNS]{};
      for (int64_t r = 0; r < f.rank; ++r) {
        const T* row = b + r * f.out_size + first;
#pragma omp simd
        for (int64_t c = 0; c < last - first; ++c) acc[c] += in[r] * get(row[c]);
      }
      for (int64_t c = 0; c < last - first; ++c) put(to + first + c, get(to[first + c]) + acc[c] * scale);
    }
  }
}

struct Task {
  const Segment* segment;
  const Factors* factors;
  int64_t first, last;
};

// Cuts the slices of all segments into tasks of `step` rank rows or output columns; only counts without `tasks`.
int64_t cut(const Segment* segments, int64_t count, int64_t slices, int64_t offset, int64_t Factors::*extent,
            int64_t step, Task* tasks) {
  int64_t n = 0;
  for (int64_t s = 0; s < count; ++s)
    for (const Factors* f = segments[s].factors + offset; f < segments[s].factors + offset + slices; ++f)
      for (int64_t at = 0; f->rank && at < f->*extent; at += step, ++n)
        if (tasks) tasks[n] = {segments + s, f, at, at + step < f->*extent ? at + step : f->*extent};
  return n;
}

template <class T>
void lora(const Segment* segments, int64_t count, int64_t slices, int64_t offset, const T* x, int64_t in, T* y,
          int64_t out, float* bridge, int64_t bridge_width) {
  int64_t downs = cut(segments, count, slices, offset, &Factors::rank, RANKS, nullptr);
  int64_t ups = cut(segments, count, slices, offset, &Factors::out_size, COLUMNS, nullptr);
  if (!downs) return;
  Task *down = static_cast<Task*>(std::malloc((downs + ups) * sizeof(Task))), *up = down + downs;
  cut(segments, count, slices, offset, &Factors::rank, RANKS, down);
  cut(segments, count, slices, offset, &Factors::out_size, COLUMNS, up);
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < downs; ++i) {
      const Task& t = down[i];
      shrink(*t.factors, t.first, t.last, x, in, t.segment->start, t.segment->stop, bridge, bridge_width);
    }
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < ups; ++i) {
      const Task& t = up[i];
      expand(*t.factors, t.first, t.last, bridge, bridge_width, y, out, t.segment->start, t.segment->stop);
    }
  }
  std::free(down);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void readapt_lora_f32(const Segment* segments, int64_t count, int64_t slices, int64_t offset,
                                 const float* x, int64_t in, float* y, int64_t out, float* bridge, int64_t width) {
  lora(segments, count, slices, offset, x, in, y, out, bridge, width);
}
extern "C" __attribute__((visibility("default"))) void readapt_lora_bf16(const Segment* segments, int64_t count, int64_t slices, int64_t offset,
                                  const bf16* x, int64_t in, bf16* y, int64_t out, float* bridge, int64_t width) {
  lora(segments, count, slices, offset, x, in, y, out, bridge, width);
}
