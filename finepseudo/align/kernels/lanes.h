// Soft-DTW of sixteen pairs at a time, one pair a lane, for any width of the machine's vectors.
//
// Layout: a tile of costs is [T][U][16] with any distance between its rows; T and U are walked outside, the lanes
// inside, so there is no shuffle and no mask. In the exponential domain, with K = exp(-C / gamma),
//
//     a(i,j) = K(i,j) (a(i-1,j) + a(i,j-1) + a(i-1,j-1)),       R(T,U) = -gamma log a(T,U)
//     b(i,j) = sum of K(s) b(s) over the three cells s after (i,j),   b(T,U) = 1,   E = a b / a(T,U)
//
// Nothing cancels, so only the range of double can fail. docs/alignment.md proves when it does not; what is not
// proven is computed in the log domain. Every function is inlined into one caller for each instruction set: a call
// would be compiled for the machine's baseline.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace finepseudo {

constexpr int LANES = 16;
constexpr double LN2 = 0.693147180559945309;
constexpr double LOG2E = 1.44269504088896341;
constexpr double TINY = 0x1p-1000;  // added to every cell of the upper run; see docs/alignment.md
// What the proofs leave open of a(T,U), relative: gamma times as much of R.
template <class Real>
constexpr double TOLERANCE = sizeof(Real) == 4 ? 1e-7 : 1e-13;
constexpr double LOG_SMALLEST = -1021 * LN2;

// Denormal numbers are slow, and the proofs count them as zero. Restores the caller's mode.
struct FlushDenormals {
#if defined(__x86_64__)
  unsigned saved = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(saved | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved); }
#endif
};

// The lengths of the pairs in the lanes, and which lanes hold a pair at all.
struct Lanes {
  int T, U, used;
  bool equal;  // every lane is (T, U)
  int t[LANES], u[LANES];
};

template <int BYTES>
struct Isa {
  typedef double d __attribute__((vector_size(BYTES), aligned(8)));
  typedef int64_t l __attribute__((vector_size(BYTES), aligned(8)));
  typedef float f __attribute__((vector_size(BYTES / 2), aligned(4)));
  static constexpr int W = BYTES / 8;  // doubles in a register
};

template <int B>
INLINE typename Isa<B>::d all(double x) {
  return typename Isa<B>::d{} + x;
}

// Element by element: compilers make one instruction of it, and of __builtin_convertvector two halves.
template <int B>
INLINE typename Isa<B>::d widen(typename Isa<B>::f x) {
  typename Isa<B>::d wide;
  for (int k = 0; k < Isa<B>::W; ++k) wide[k] = x[k];
  return wide;
}

template <int B>
INLINE typename Isa<B>::d load(const double* p) {
  return *reinterpret_cast<const typename Isa<B>::d*>(p);
}

template <int B>
INLINE typename Isa<B>::d load(const float* p) {
  return widen<B>(*reinterpret_cast<const typename Isa<B>::f*>(p));
}

template <int B>
INLINE void store(double* p, typename Isa<B>::d x) {
  *reinterpret_cast<typename Isa<B>::d*>(p) = x;
}

template <int B>
INLINE void store(float* p, typename Isa<B>::d x) {
  *reinterpret_cast<typename Isa<B>::f*>(p) = __builtin_convertvector(x, typename Isa<B>::f);
}

// 2^n for a whole number n within -1022..1023, held as a double. The sum's last bits are n + 1023.
template <int B>
INLINE typename Isa<B>::d power_of_two(typename Isa<B>::d n) {
  typedef typename Isa<B>::d d;
  typedef typename Isa<B>::l l;
  return (d)((l)(n + (0x1.8p52 + 1023)) << 52);
}

// 2^x to single precision, relative error 2e-7 whatever x: the fraction is taken in double. 0 below 2^-1021, NaN for NaN.
template <int B>
INLINE typename Isa<B>::d exp2_single(typename Isa<B>::d x) {
  typedef typename Isa<B>::d d;
  typedef typename Isa<B>::l l;
  typedef typename Isa<B>::f f;
  const d low = all<B>(-1021.0);
  const d kept = x < low ? low : x;
  const d shifted = kept + (0x1.8p52 + 1023);  // its last bits are the whole part + 1023
  const f r = __builtin_convertvector(kept - (shifted - (0x1.8p52 + 1023)), f);
  f p = r * 1.54614446986e-4f + 1.34004281776e-3f;
  p = p * r + 9.61805667852e-3f;
  p = p * r + 5.55032722667e-2f;
  p = p * r + 2.40226509223e-1f;
  p = p * r + 6.93147206703e-1f;
  p = p * r + 1.0f;
  const d power = widen<B>(p) * (d)((l)shifted << 52);
  return x < low ? d{} : power;
}

// exp(x) in double, about one rounding; 0 below exp(-707), NaN for NaN.
template <int B>
INLINE typename Isa<B>::d exp_double(typename Isa<B>::d x) {
  typedef typename Isa<B>::d d;
  const d low = all<B>(-707.0);
  const d kept = x < low ? low : x;
  const d n = (kept * LOG2E + 0x1.8p52) - 0x1.8p52;
  const d r = (kept - n * 6.93147180369123816490e-1) - n * 1.90821492927058770002e-10;
  d p = all<B>(1.0 / 6227020800.0);
  constexpr double inverse_factorials[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                           1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,     1.0 / 6,
                                           1.0 / 2,         1.0,            1.0};
  for (double c : inverse_factorials) p = p * r + c;
  p = x < low ? d{} : p;
  return p * power_of_two<B>(n);
}

// log(x) of a normal positive x; NaN for NaN.
template <int B>
INLINE typename Isa<B>::d log_double(typename Isa<B>::d x) {
  typedef typename Isa<B>::d d;
  typedef typename Isa<B>::l l;
  const l bits = (l)x;
  d e = (d)(((bits >> 52) & 0x7ff) + (l)all<B>(0x1.8p52)) - (0x1.8p52 + 1023);
  d m = (d)((bits & 0xfffffffffffff) | ((l){} + (int64_t(1023) << 52)));
  const l high = m > 1.41421356237309505;
  m = high ? m * 0.5 : m;
  e = high ? e + 1.0 : e;
  const d s = (m - 1.0) / (m + 1.0), s2 = s * s;
  d p = all<B>(1.0 / 23);
  constexpr double odd[] = {1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11,
                            1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3,  1.0};
  for (double c : odd) p = p * s2 + c;
  return e * LN2 + 2.0 * s * p + (x - x);
}

// K of U cells of a row: from costs, or from the products <u,v> of which the cost is 1 less.
template <int B, bool DOT>
INLINE void exp_row(const float* row, int U, double gamma, double* k) {
  typedef typename Isa<B>::f f;
  for (int n = 0; n < U * LANES; n += Isa<B>::W) {
    f c = *reinterpret_cast<const f*>(row + n);
    if (DOT) c = 1.0f - c;
    store<B>(k + n, exp2_single<B>(widen<B>(c) * (-LOG2E / gamma)));
  }
}

template <int B, bool DOT>
INLINE void exp_row(const double* row, int U, double gamma, double* k) {
  for (int n = 0; n < U * LANES; n += Isa<B>::W) {
    typename Isa<B>::d c = load<B>(row + n);
    if (DOT) c = 1.0 - c;
    store<B>(k + n, exp_double<B>(c / -gamma));
  }
}

// One row of a: `before` and `now` are [U + 1][16], cell 0 the border; they may be the same row.
template <int B>
INLINE void row_forward(const double* k, const double* before, double* now, int U) {
  typedef typename Isa<B>::d d;
  constexpr int W = Isa<B>::W;
  for (int l = 0; l < LANES; l += 2 * W) {  // two registers: while one waits for its left neighbour, the other works
    d diag0 = load<B>(before + l), diag1 = load<B>(before + l + W), left0{}, left1{};
    store<B>(now + l, left0);
    store<B>(now + l + W, left1);
    for (int j = 0; j < U; ++j) {
      const int at = j * LANES + l, to = at + LANES;
      const d up0 = load<B>(before + to), up1 = load<B>(before + to + W);
      const d k0 = load<B>(k + at), k1 = load<B>(k + at + W);
      left0 = k0 * left0 + k0 * (up0 + diag0);
      left1 = k1 * left1 + k1 * (up1 + diag1);
      diag0 = up0;
      diag1 = up1;
      store<B>(now + to, left0);
      store<B>(now + to + W, left1);
    }
  }
}

// The same row below and above the truth; what comes from the row before is multiplied by `scale`, a power of two
// for each lane. Returns in `scale` that of the next row, and adds its exponent to `exponent`.
template <int B>
INLINE void row_between(const double* k, const double* low_before, double* low_now, const double* high_before,
                        double* high_now, int U, double* scale, double* exponent) {
  typedef typename Isa<B>::d d;
  typedef typename Isa<B>::l l64;
  constexpr int W = Isa<B>::W;
  for (int l = 0; l < LANES; l += W) {
    const d times = load<B>(scale + l);
    d low_diag = load<B>(low_before + l), high_diag = load<B>(high_before + l), low{}, high{}, most = all<B>(TINY);
    store<B>(low_now + l, low);
    store<B>(high_now + l, high);
    for (int j = 0; j < U; ++j) {
      const int at = j * LANES + l, to = at + LANES;
      const d low_up = load<B>(low_before + to), high_up = load<B>(high_before + to), kk = load<B>(k + at);
      low = kk * (low + times * (low_up + low_diag));
      high = kk * (high + times * (high_up + high_diag)) + TINY;
      most = high > most ? high : most;
      low_diag = low_up;
      high_diag = high_up;
      store<B>(low_now + to, low);
      store<B>(high_now + to, high);
    }
    const l64 biased = (l64)most >> 52;  // most is positive: no sign
    store<B>(scale + l, (d)((2046 - biased) << 52));
    store<B>(exponent + l, load<B>(exponent + l) + ((d)(biased + (l64)all<B>(0x1.8p52)) - (0x1.8p52 + 1023)));
  }
}

// One row of b, from the row after it. `w` is [U + 2][16] and holds K b of the row after; cell j + 1 is column j.
// Writes E = a b factor of the row, leaves K b of this row in `w`, and its largest in `most` (unless null).
template <int B, class Real>
INLINE void row_backward(const double* k, const double* a, double* w, const double* seed, int U, const double* scale,
                         const double* factor, Real* out, double* most) {
  typedef typename Isa<B>::d d;
  constexpr int W = Isa<B>::W;
  for (int l = 0; l < LANES; l += W) {
    const d times = load<B>(scale + l), norm = load<B>(factor + l);
    d diag = load<B>(w + (U + 1) * LANES + l), right{}, largest{};
    for (int j = U - 1; j >= 0; --j) {
      const int at = j * LANES + l, to = at + LANES;
      const d down = load<B>(w + to);
      d b = right + times * (down + diag);
      if (seed) b += load<B>(seed + at);
      right = load<B>(k + at) * b;
      diag = down;
      if (most) largest = right > largest ? right : largest;
      store<B>(w + to, right);
      store<B>(out + at, load<B>(a + to) * b * norm);
    }
    if (most) store<B>(most + l, largest);
  }
}

template <int B, class Real, bool DOT>
INLINE typename Isa<B>::d cost_at(const Real* p) {
  const typename Isa<B>::d c = load<B>(p);
  return DOT ? 1.0 - c : c;
}

// Log domain, in units of gamma: r = c + smin(r, r, r). `r` is [rows][U + 1][16]; rows = 2 (turn by turn) or T + 1.
template <int B, class Real, bool DOT>
INLINE void log_forward(const Real* cost, int64_t stride, const Lanes& n, double gamma, double* r, bool keep,
                        double* dist) {
  typedef typename Isa<B>::d d;
  constexpr int W = Isa<B>::W;
  constexpr double inf = std::numeric_limits<double>::infinity();
  const int row = (n.U + 1) * LANES;
  for (int at = 0; at < row; ++at) r[at] = at < LANES ? 0 : inf;
  for (int i = 0; i < n.T; ++i) {
    const double* before = r + (keep ? i : i & 1) * row;
    double* now = r + (keep ? i + 1 : (i + 1) & 1) * row;
    for (int l = 0; l < LANES; l += W) {
      d left = all<B>(inf), diag = load<B>(before + l);
      store<B>(now + l, left);
      for (int j = 0; j < n.U; ++j) {
        const d up = load<B>(before + (j + 1) * LANES + l);
        d least = up < left ? up : left;
        least = diag < least ? diag : least;
        d total = exp_double<B>(least - up) + exp_double<B>(least - left) + exp_double<B>(least - diag);
        total = (up == inf) & (left == inf) & (diag == inf) ? all<B>(1.0) : total;  // no way here: inf, not inf - inf
        left = cost_at<B, Real, DOT>(cost + i * stride + j * LANES + l) / gamma + least - log_double<B>(total);
        diag = up;
        store<B>(now + (j + 1) * LANES + l, left);
      }
    }
    for (int l = 0; l < LANES; ++l)
      if (n.t[l] == i + 1) dist[l] = gamma * now[n.u[l] * LANES + l];
  }
}

// E of the log domain: E(q) = sum over the cells s after q of E(s) exp(r(s) - c(s) - r(q)); `w` is [2][U + 2][16].
template <int B, class Real>
INLINE void log_backward(const Real* cost, int64_t stride, const Lanes& n, double gamma, const double* r, double* w,
                         Real* out) {
  typedef typename Isa<B>::d d;
  constexpr int W = Isa<B>::W;
  const int row = (n.U + 1) * LANES, wide = (n.U + 2) * LANES;
  for (int at = 0; at < 2 * wide; ++at) w[at] = 0;
  for (int i = n.T - 1; i >= 0; --i) {
    double* now = w + (i & 1) * wide;
    const double* after = w + ((i + 1) & 1) * wide;
    for (int l = 0; l < LANES; l += W) {
      for (int j = n.U - 1; j >= 0; --j) {
        const d here = load<B>(r + (i + 1) * row + (j + 1) * LANES + l);
        d sum{};
        for (int step = 0; step < 3; ++step) {  // down, right, both
          const int di = step != 1, dj = step != 0;
          if (i + di == n.T || j + dj == n.U) continue;
          const d share = load<B>((di ? after : now) + (j + dj + 1) * LANES + l);
          const d c = load<B>(cost + (i + di) * stride + (j + dj) * LANES + l) / gamma;
          const d w_s = exp_double<B>(load<B>(r + (i + di + 1) * row + (j + dj + 1) * LANES + l) - c - here);
          sum += share != 0.0 ? share * w_s : d{};  // no path of the pair goes there: costs may be infinite
        }
        for (int k = 0; k < W; ++k)
          if (n.t[l + k] == i + 1 && n.u[l + k] == j + 1) sum[k] += 1;
        store<B>(now + (j + 1) * LANES + l, sum);
        store<B>(out + (i * n.U + j) * LANES + l, sum);
      }
    }
  }
}

}  // namespace finepseudo
