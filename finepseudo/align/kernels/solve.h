// The three steps of docs/alignment.md for one group of sixteen pairs: values alone, or values and gradients.
#pragma once

#include <vector>

#include "lanes.h"

namespace finepseudo {

typedef uint32_t Mask;  // one bit a lane

constexpr double LOG_PATHS = 0.881373587019543025;  // Delannoy(m, n) <= (1 + sqrt 2)^(m + n)
constexpr int WIDEST = 1 << 15;  // columns up to which TINY covers what a cell of the upper run can lose

// Memory of one thread, made once for all groups of one size.
struct Work {
  std::vector<double> k, low, high, edge;
  std::vector<double> exponents;  // [T][16], of the rows of a

  Work(int T, int U, bool gradient) {
    const size_t row = size_t(U + 2) * LANES, rows = gradient ? T + 1 : 2;
    k.resize(gradient ? row * T : row);
    low.resize(row * rows);
    high.resize(row * 2);
    edge.resize(row * 3);
    if (gradient) exponents.resize(size_t(T) * LANES);
  }
};

// Whether b, at most Delannoy(T-1, U-1) exp(slack), stays in the range where a(T,U) itself may be far smaller.
inline bool backward_fits(int T, int U, double slack) { return LOG_PATHS * (T + U - 2) + slack < 1023 * LN2; }

// Values and state of one group as the steps leave them.
struct Group {
  Lanes n;
  Mask open;      // lanes without a proven value
  Mask forced;    // lanes that hold NaN or an infinite cost: log domain, at once
  double slack;   // (T + U) / gamma x how far costs go below 0; the proofs allow 1
  bool* unlikely; // step 1 is not worth trying: it failed for the group before
  double dist[LANES] = {};
  int64_t solved[3];  // pairs by step
};

// What a(T,U) must reach for one comparison to prove it; docs/alignment.md, step 1.
inline double log_bound(int T, int U, double slack, double tolerance) {
  return LOG_SMALLEST - std::log(tolerance) + std::log(3.0 * T * U) + LOG_PATHS * (T + U - 2) + slack;
}

// Read a(T,U) of the lanes that end with row i, after it was computed.
INLINE void pick(const Lanes& n, int i, const double* row, double* z) {
  if (n.equal && i + 1 < n.T) return;
  for (int l = 0; l < LANES; ++l)
    if (n.t[l] == i + 1) z[l] = row[n.u[l] * LANES + l];
}

// Take over the values of the open lanes for which a step has the right ones; says which these were.
INLINE Mask settle(Group& g, Mask right, const double* dist, int step) {
  const Mask now = g.open & right;
  for (int l = 0; l < LANES; ++l)
    if (now >> l & 1) {
      g.dist[l] = dist[l];
      ++g.solved[step];
    }
  g.open &= ~now;
  return now;
}

template <int B>
INLINE void logs(const double* z, double* log_z) {
  for (int l = 0; l < LANES; l += Isa<B>::W) store<B>(log_z + l, log_double<B>(load<B>(z + l)));
}

INLINE void first_row(double* row, int U) {
  for (int at = 0; at < (U + 1) * LANES; ++at) row[at] = at < LANES ? 1 : 0;
}

INLINE void fill(double* x, double value, int count) {
  for (int n = 0; n < count; ++n) x[n] = value;
}

template <int B, class Real, bool DOT>
INLINE Mask step_one(const Real* cost, int64_t stride, Group& g, double gamma, Work& w, bool keep, double* z) {
  const int U = g.n.U, row = (U + 1) * LANES;
  fill(z, 0, LANES);
  first_row(w.low.data(), U);
  for (int i = 0; i < g.n.T; ++i) {
    double* k = w.k.data() + (keep ? int64_t(i) * U * LANES : 0);
    double* before = w.low.data() + (keep ? int64_t(i) * row : 0);
    double* now = before + (keep ? row : 0);
    exp_row<B, DOT>(cost + i * stride, U, gamma, k);
    row_forward<B>(k, before, now, U);
    pick(g.n, i, now, z);
  }
  double log_z[LANES], dist[LANES];
  logs<B>(z, log_z);
  const double bound = log_bound(g.n.T, U, g.slack, TOLERANCE<Real>);
  Mask proven = 0;
  for (int l = 0; l < LANES; ++l) {
    dist[l] = -gamma * log_z[l];
    proven |= Mask(log_z[l] > bound && log_z[l] < 1e9) << l;
  }
  return settle(g, proven, dist, 0);
}

// z: lower run at each lane's end; z_high: upper run; ends: exponent of both.
template <int B, class Real, bool DOT>
INLINE Mask step_two(const Real* cost, int64_t stride, Group& g, double gamma, Work& w, bool keep, double* z,
                     double* z_high, double* ends) {
  const int U = g.n.U, row = (U + 1) * LANES;
  double scale[LANES], exponent[LANES], log_z[LANES], dist[LANES];
  fill(scale, 1, LANES);
  fill(exponent, 0, LANES);
  fill(z, 0, LANES);
  fill(z_high, 1, LANES);
  fill(ends, 0, LANES);
  first_row(w.low.data(), U);
  first_row(w.high.data(), U);
  for (int i = 0; i < g.n.T; ++i) {
    double* k = w.k.data() + (keep ? int64_t(i) * U * LANES : 0);
    double* before = w.low.data() + (keep ? int64_t(i) * row : 0);
    double* now = before + (keep ? row : 0);
    if (keep) std::memcpy(w.exponents.data() + int64_t(i) * LANES, exponent, sizeof exponent);
    for (int l = 0; l < LANES; ++l)
      if (g.n.t[l] == i + 1) ends[l] = exponent[l];
    exp_row<B, DOT>(cost + i * stride, U, gamma, k);
    row_between<B>(k, before, now, w.high.data(), w.high.data(), U, scale, exponent);
    pick(g.n, i, now, z);
    pick(g.n, i, w.high.data(), z_high);
  }
  logs<B>(z, log_z);
  Mask proven = 0;
  for (int l = 0; l < LANES; ++l) {
    dist[l] = -gamma * (log_z[l] + LN2 * ends[l]);
    proven |= Mask(z[l] > 0x1p-900 && z_high[l] - z[l] <= TOLERANCE<Real> * z[l] && z[l] < 0x1p900) << l;
  }
  return settle(g, proven, dist, 1);
}

template <int B, class Real, bool DOT>
INLINE void values(const Real* cost, int64_t stride, Group& g, double gamma, Work& w) {
  double z[LANES], z_high[LANES], ends[LANES];
  const Mask forced = g.open & g.forced;
  g.open &= ~forced;
  if (g.open && g.slack <= 1 && !*g.unlikely) {
    step_one<B, Real, DOT>(cost, stride, g, gamma, w, false, z);
    *g.unlikely = g.open != 0;
  }
  if (g.open && g.slack <= 1 && g.n.U < WIDEST) step_two<B, Real, DOT>(cost, stride, g, gamma, w, false, z, z_high, ends);
  g.open |= forced;
  if (!g.open) return;
  double dist[LANES] = {};
  log_forward<B, Real, DOT>(cost, stride, g.n, gamma, w.low.data(), false, dist);
  settle(g, g.open, dist, 2);
}

// Row i's seed of b: 1 at the end of every lane that ends there; null if none does.
INLINE const double* seed_row(const Lanes& n, int i, double* buffer) {
  if (n.equal && i + 1 < n.T) return nullptr;
  bool any = false;
  fill(buffer, 0, n.U * LANES);
  for (int l = 0; l < LANES; ++l)
    if (n.t[l] == i + 1) {
      buffer[(n.u[l] - 1) * LANES + l] = 1;
      any = true;
    }
  return any ? buffer : nullptr;
}

// b and E after step one, whose comparison proves them too.
template <int B, class Real>
INLINE void backward_one(const Lanes& n, const double* z, Work& w, Real* out) {
  const int row = (n.U + 1) * LANES, wide = (n.U + 2) * LANES;
  double one[LANES], factor[LANES];
  fill(one, 1, LANES);
  for (int l = 0; l < LANES; ++l) factor[l] = 1 / z[l];
  double *after = w.edge.data(), *seed = after + wide;
  fill(after, 0, wide);
  for (int i = n.T - 1; i >= 0; --i)
    row_backward<B>(w.k.data() + int64_t(i) * n.U * LANES, w.low.data() + int64_t(i + 1) * row, after,
                    seed_row(n, i, seed), n.U, one, factor, out + int64_t(i) * n.U * LANES, nullptr);
}

// The same with rescaled rows. Returns the lanes for which the end of b agrees with the upper run of a.
template <int B, class Real>
INLINE Mask backward_two(const Lanes& n, const double* z, const double* z_high, const double* ends, Work& w,
                         Real* out) {
  const int row = (n.U + 1) * LANES, wide = (n.U + 2) * LANES;
  double scale[LANES], factor[LANES], exponent[LANES], most[LANES];
  fill(scale, 1, LANES);
  fill(exponent, 0, LANES);
  double *after = w.edge.data(), *seed = after + wide;
  fill(after, 0, wide);
  Mask proven = 0xffff;
  double last[LANES] = {};
  for (int i = n.T - 1; i >= 0; --i) {
    for (int l = 0; l < LANES; ++l) {
      const double x = w.exponents[int64_t(i) * LANES + l] + exponent[l] - ends[l];
      if (i < n.t[l] && !(std::fabs(x) <= 900)) proven &= ~(Mask(1) << l);  // E itself would leave the range
      factor[l] = i < n.t[l] && std::fabs(x) <= 900 ? std::ldexp(1 / z[l], int(x)) : 0;
      last[l] = exponent[l];
    }
    row_backward<B>(w.k.data() + int64_t(i) * n.U * LANES, w.low.data() + int64_t(i + 1) * row, after,
                    seed_row(n, i, seed), n.U, scale, factor, out + int64_t(i) * n.U * LANES, most);
    for (int l = 0; l < LANES; ++l) {
      const int e = most[l] > 0 && most[l] < 0x1p1000 ? std::ilogb(most[l]) : 0;
      scale[l] = std::ldexp(1.0, -e);
      exponent[l] += e;
    }
  }
  for (int l = 0; l < LANES; ++l) {
    const double start = std::ldexp(after[LANES + l], int(std::fmax(-4000, std::fmin(4000, last[l] - ends[l]))));
    if (!(start >= z_high[l] * (1 - 2 * TOLERANCE<Real>))) proven &= ~(Mask(1) << l);
  }
  return proven;
}

// Values and E = dR/dC. `tile` is [T][U][16]; `emit(lanes)` is called when these lanes of it are right.
template <int B, class Real, class Emit>
INLINE void gradients(const Real* cost, int64_t stride, Group& g, double gamma, Work& w, Real* tile, Emit& emit) {
  double z[LANES], z_high[LANES], ends[LANES];
  const Mask forced = g.open & g.forced;
  g.open &= ~forced;
  if (g.open && g.slack <= 1 && !*g.unlikely && backward_fits(g.n.T, g.n.U, g.slack)) {
    const Mask solved = step_one<B, Real, false>(cost, stride, g, gamma, w, true, z);
    if (solved) {
      backward_one<B, Real>(g.n, z, w, tile);
      emit.lanes(solved);
    }
    *g.unlikely = g.open != 0;
  }
  if (g.open && g.slack <= 1 && g.n.U < WIDEST) {
    const Mask solved = step_two<B, Real, false>(cost, stride, g, gamma, w, true, z, z_high, ends);
    if (solved) {
      const Mask good = solved & backward_two<B, Real>(g.n, z, z_high, ends, w, tile);
      emit.lanes(good);
      const Mask back = solved & ~good;
      g.open |= back;
      for (int l = 0; l < LANES; ++l) g.solved[1] -= back >> l & 1;
    }
  }
  g.open |= forced;
  if (!g.open) return;
  double dist[LANES] = {};
  log_forward<B, Real, false>(cost, stride, g.n, gamma, w.low.data(), true, dist);
  log_backward<B, Real>(cost, stride, g.n, gamma, w.low.data(), w.edge.data(), tile);
  emit.lanes(settle(g, g.open, dist, 2));
}

}  // namespace finepseudo
