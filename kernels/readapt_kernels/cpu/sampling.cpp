// Draws tokens from softmax(logits / temperature) cut at top_p, by inversion in the order of the vocabulary.
#include <cmath>

#include "kernels.h"

using namespace readapt;

namespace {

constexpr int64_t BLOCKS = 256, BINS = 1024;
constexpr float ALL = -87.0f, SLACK = 0.01f;  // where exp() is 0; more than what log() and exp() are off by

// What is kept of the distribution: weights above `least`, and of those equal to it the first `ties`.
struct Cut {
  float least;
  int64_t ties;
};

double sum_of(floats v) {
  double sum = 0;
  for (int64_t lane = 0; lane < NATIVE; ++lane) sum += double(v[lane]);
  return sum;
}
uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// A row of logits as weights: 1 for the largest.
template <class T> struct Weights {
  const T* logits;
  int64_t vocab;
  float largest, inverse;

  // Logarithms of the weights from i on.
  floats logs(int64_t i) const {
    if (i + NATIVE <= vocab) return (load_native(logits + i) - largest) * inverse;
    float rest[NATIVE];
    for (int64_t lane = 0; lane < NATIVE; ++lane) rest[lane] = i + lane < vocab ? get(logits[i + lane]) : -INFINITY;
    return (load_native(rest) - largest) * inverse;
  }
  // Calls work(weights, i) for every vector in [start, stop) that has a logarithm in [from, upto].
  template <class Work> void in_range(int64_t start, int64_t stop, float from, float upto, Work work) const {
    for (int64_t i = start; i < stop; i += NATIVE) {
      floats x = logs(i);
      if (any((x >= from) & (x <= upto))) work(exp(x), i);
    }
  }
  int64_t block() const { return (vocab + BLOCKS * LANES - 1) / (BLOCKS * LANES) * LANES; }
};

float from_of(Cut cut) { return cut.least > 0 ? std::log(cut.least) - SLACK : ALL; }

// The mass that is kept in each block, and of all of them.
template <class T> double add_up(const Weights<T>& row, Cut cut, double* masses) {
  double total = 0;
  float from = from_of(cut);
  int64_t at = 0;
  for (int64_t start = 0; start < row.vocab; start += row.block()) {
    int64_t stop = start + row.block() < row.vocab ? start + row.block() : row.vocab;
    floats above{};
    int64_t tied = 0;
    row.in_range(start, stop, from, INFINITY, [&](floats w, int64_t) {
      above += w > cut.least ? w : floats{};
      if (cut.ties > 0 && any(w == cut.least))
        for (int64_t lane = 0; lane < NATIVE; ++lane) tied += w[lane] == cut.least && cut.ties-- > 0;
    });
    total += masses[at++] = sum_of(above) + double(tied) * double(cut.least);
  }
  return total;
}

// The smallest set of the likeliest that has top_p of the mass, first ones first among equals: as Cut, found by radix over
// the bits of the weights. Weights below (1 - top_p) / vocab of the mass are passed over: all of them together have less
// than 1 - top_p.
template <class T> Cut find_cut(const Weights<T>& row, double total, double top_p) {
  double wanted = top_p * total, above = 0;
  float from = std::fmax(ALL, float(std::log((1.0 - top_p) * total / double(2 * row.vocab))) - SLACK), upto = INFINITY;
  uint32_t prefix = 0;
  for (int shift = 20; shift >= 0; shift -= 10) {
    double bins[BINS] = {};
    row.in_range(0, row.vocab, from, upto, [&](floats w, int64_t) {
      float weights[NATIVE];
      std::memcpy(weights, &w, sizeof w);
      for (float weight : weights) {
        uint32_t bits = bits_of(weight);
        if (bits >> (shift + 10) == prefix) bins[bits >> shift & (BINS - 1)] += weight;
      }
    });
    int64_t bin = -1;
    double passed = 0;
    for (int64_t b = BINS - 1; b >= 0; --b) {
      if (!(bins[b] > 0)) continue;
      passed += bin < 0 ? 0 : bins[bin];
      bin = b;
      if (above + passed + bins[b] >= wanted) break;
    }
    if (bin < 0) return {0.0f, 0};
    above += passed;
    prefix = prefix << 10 | uint32_t(bin);
    from = std::fmax(from, std::log(float_of(prefix << shift)) - SLACK);
    upto = std::log(float_of((prefix + 1) << shift)) + SLACK;
  }
  float least = float_of(prefix);
  double ties = std::ceil((wanted - above) / double(least));
  return {least, ties > 1 ? int64_t(ties) : 1};
}

// The first token at which the kept mass, added up in the order of the vocabulary, is above point * total.
template <class T> int64_t invert(const Weights<T>& row, Cut cut, const double* masses, double target, int64_t last) {
  double before = 0;
  int64_t at = 0, start = 0;
  for (; start < row.vocab && !(before + masses[at] > target); start += row.block()) before += masses[at++];
  int64_t stop = start + row.block() < row.vocab ? start + row.block() : row.vocab, found = -1;
  if (cut.ties > 0)  // those in the blocks before
    row.in_range(0, start, from_of(cut), INFINITY, [&](floats w, int64_t) {
      for (int64_t lane = 0; lane < NATIVE; ++lane) cut.ties -= w[lane] == cut.least;
    });
  row.in_range(start, stop, from_of(cut), INFINITY, [&](floats w, int64_t i) {
    for (int64_t lane = 0; lane < NATIVE; ++lane) {
      bool kept = w[lane] > cut.least || (w[lane] == cut.least && cut.ties-- > 0);
      if (found >= 0 || !kept) continue;
      last = i + lane;
      before += double(w[lane]);
      if (before > target) found = last;
    }
  });
  return found < 0 ? last : found;  // rounding may put the target at the very end of the mass
}

template <class T>
void draw(const T* logits, int64_t vocab, const int64_t* rows, int64_t count, const int64_t* best,
          const float* temperature, const float* top_p, const float* point, int64_t* drawn) {
#pragma omp parallel for schedule(static) if (count > 1)
  for (int64_t r = 0; r < count; ++r) {
    const T* row = logits + rows[r] * vocab;
    int64_t largest = best[rows[r]];
    Weights<T> weights{row, vocab, get(row[largest]), 1.0f / temperature[r]};
    double masses[BLOCKS];
    Cut cut{0.0f, 0};
    double total = add_up(weights, cut, masses);
    if (top_p[r] < 1.0f) {
      cut = find_cut(weights, total, top_p[r]);
      total = add_up(weights, cut, masses);
    }
    drawn[r] = invert(weights, cut, masses, double(point[r]) * total, largest);
  }
}

}  // namespace

#define DRAW(NAME, T)                                                                                              \
  EXPORT void readapt_draw_##NAME(const T* logits, int64_t vocab, const int64_t* rows, int64_t count,              \
                                  const int64_t* best, const float* temperature, const float* top_p,               \
                                  const float* point, int64_t* drawn) {                                            \
    draw(logits, vocab, rows, count, best, temperature, top_p, point, drawn);                                      \
  }
DRAW(f32, float)
DRAW(bf16, bf16)
