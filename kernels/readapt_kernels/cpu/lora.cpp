// LoRA on one fused linear, all adapters of the step at once: y += scale * (x A^T) B, at each adapter's own rank.
#include <omp.h>

#include <cstdlib>

#include "kernels.h"

using namespace readapt;

namespace {

constexpr int64_t RANKS = 8;       // rank rows of one task of the first phase
constexpr int64_t COLUMNS = 1536;  // output columns of one task of the second phase, where there are enough tasks
constexpr int64_t FEWER = 192;     // and where there are not
constexpr int ROWS = 4;            // tokens that share a pass over the weights
constexpr int64_t AHEAD = 8192;    // bytes: weights lie in the order in which they are read
#if defined(__AVX512F__)
constexpr int TILE = 4;  // rank rows whose sums are in registers together, where several tokens share them
#else
constexpr int TILE = 1;
#endif

template <class T> inline void prefetch_ahead(const T* p) { prefetch(reinterpret_cast<const char*>(p) + AHEAD); }

// out[r][n] = rank row r . token n, for R rank rows and N tokens, both `in` apart.
template <class T, int R, int N> void dots(const T* a, const T* x, int64_t in, float (*out)[ROWS]) {
  f32x16 acc[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) acc[r][n] = f32x16{};
  int64_t k = 0;
  for (; k + LINE<T> <= in; k += LINE<T>)
    for (int r = 0; r < R; ++r) {
      prefetch_ahead(a + r * in + k);
      for (int n = 0; n < N; ++n) acc[r][n] = add_products(acc[r][n], a + r * in + k, x + n * in + k);
    }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) {
      float rest = 0;
      for (int64_t i = k; i < in; ++i) rest += get(a[r * in + i]) * get(x[n * in + i]);
      out[r][n] = rounded<T>(sum(acc[r][n]) + rest);
    }
}

// bridge[n, r] for N tokens and the rank rows [first, last) of a slice.
template <class T, int N>
void shrink(const Factors& f, int64_t first, int64_t last, const T* x, int64_t in, float* bridge, int64_t width) {
  const T* a = static_cast<const T*>(f.a);
  in_parts<(N > 1 ? TILE : 1)>(first, last, [&](int64_t r, auto rows) {
    constexpr int R = decltype(rows)::value;
    float found[R][ROWS];
    dots<T, R, N>(a + r * in, x, in, found);
    for (int i = 0; i < R; ++i)
      for (int n = 0; n < N; ++n) bridge[n * width + f.rank_start + r + i] = found[i][n];
  });
}

constexpr int64_t PAIR = 2 * LANES;  // columns that are added together

// acc[n] += bridge[n] . b for N tokens, R rank rows and some pairs of columns.
template <class T, int N, int R, int64_t MOST>
inline void add_rows(const T* b, int64_t stride, int64_t pairs, const float* bridge, int64_t width,
                     Both (&acc)[N][MOST]) {
  for (int64_t p = 0; p < pairs; ++p) {
    Both w[R];
    for (int r = 0; r < R; ++r) {
      prefetch_ahead(b + r * stride + p * PAIR);
      w[r] = load_both(b + r * stride + p * PAIR);
    }
    for (int n = 0; n < N; ++n)
      for (int r = 0; r < R; ++r) {
        acc[n][p].first += splat(bridge[n * width + r]) * w[r].first;
        acc[n][p].second += splat(bridge[n * width + r]) * w[r].second;
      }
  }
}

template <class T> inline void add_both(T* y, Both sum, f32x16 scale) {
  Both was = load_both(y);
  store_both(y, {was.first + sum.first * scale, was.second + sum.second * scale});
}

// y[n, first..last) of a slice's columns, for N tokens; their sums stay in the first level of the cache.
template <class T, int N>
void expand(const Factors& f, int64_t first, int64_t last, const float* bridge, int64_t width, T* y, int64_t out) {
  constexpr int64_t MOST = COLUMNS / N / PAIR;
  const T* b = static_cast<const T*>(f.b) + first;
  float scale = float(f.scale);
  bridge += f.rank_start;
  y += f.out_start + first;
  int64_t c = 0, size = last - first;
  while (size - c >= PAIR) {
    int64_t pairs = (size - c) / PAIR < MOST ? (size - c) / PAIR : MOST;
    Both acc[N][MOST];
    for (int n = 0; n < N; ++n)
      for (int64_t p = 0; p < pairs; ++p) acc[n][p] = Both{};
    in_parts<4>(0, f.rank, [&](int64_t r, auto rows) {
      add_rows<T, N, decltype(rows)::value>(b + r * f.out_size + c, f.out_size, pairs, bridge + r, width, acc);
    });
    for (int n = 0; n < N; ++n)
      for (int64_t p = 0; p < pairs; ++p) add_both(y + n * out + c + p * PAIR, acc[n][p], splat(scale));
    c += pairs * PAIR;
  }
  for (; c < size; ++c)
    for (int n = 0; n < N; ++n) {
      float sum = 0;
      for (int64_t r = 0; r < f.rank; ++r) sum += bridge[n * width + r] * get(b[r * f.out_size + c]);
      put(y + n * out + c, get(y[n * out + c]) + sum * scale);
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
          int64_t out, float* bridge, int64_t width) {
  int64_t columns = count < omp_get_max_threads() ? FEWER : COLUMNS;
  int64_t downs = cut(segments, count, slices, offset, &Factors::rank, RANKS, nullptr);
  int64_t tasks = downs + cut(segments, count, slices, offset, &Factors::out_size, columns, nullptr);
  if (!downs) return;
  Task* list = static_cast<Task*>(std::malloc(tasks * sizeof(Task)));
  cut(segments, count, slices, offset, &Factors::rank, RANKS, list);
  cut(segments, count, slices, offset, &Factors::out_size, columns, list + downs);
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < downs; ++i) {
      const Task& task = list[i];
      in_parts<ROWS>(task.segment->start, task.segment->stop, [&](int64_t t, auto rows) {
        constexpr int N = decltype(rows)::value;
        shrink<T, N>(*task.factors, task.first, task.last, x + t * in, in, bridge + t * width, width);
      });
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = downs; i < tasks; ++i) {
      const Task& task = list[i];
      in_parts<ROWS>(task.segment->start, task.segment->stop, [&](int64_t t, auto rows) {
        constexpr int N = decltype(rows)::value;
        expand<T, N>(*task.factors, task.first, task.last, bridge + t * width, width, y + t * out, out);
      });
    }
  }
  std::free(list);
}

}  // namespace

EXPORT void readapt_lora_f32(const Segment* segments, int64_t count, int64_t slices, int64_t offset, const float* x,
                             int64_t in, float* y, int64_t out, float* bridge, int64_t width) {
  lora(segments, count, slices, offset, x, in, y, out, bridge, width);
}
EXPORT void readapt_lora_bf16(const Segment* segments, int64_t count, int64_t slices, int64_t offset, const bf16* x,
                              int64_t in, bf16* y, int64_t out, float* bridge, int64_t width) {
  lora(segments, count, slices, offset, x, in, y, out, bridge, width);
}
