// What the elementary functions on vectors of any width share. Nothing in here has
// code of its own.
#pragma once

#define FEWBIT_INLINE inline __attribute__((always_inline))

namespace fewbit {
namespace {

// erf(x) = x P(x^2) / Q(x^2), highest power first: the odd rational approximation
// with which Eigen and oneDNN compute it, on [-4,4], beyond which it is +-1 in
// float. Largest error 3e-7.
constexpr int kErfP = 7, kErfQ = 5;
constexpr float kErfNumerator[kErfP] = {-2.72614225801306e-10f, 2.77068142495902e-08f,  -2.10102402082508e-06f, -5.69250639462346e-05f,
                                        -7.34990630326855e-04f, -2.95459980854025e-03f, -1.60960333262415e-02f};
constexpr float kErfDenominator[kErfQ] = {-1.45660718464996e-05f, -2.13374055278905e-04f, -1.68282697438203e-03f, -7.37332916720468e-03f, -1.42647390514189e-02f};

// exp(r), |r| <= ln(2)/2, as 1 + r + r^2 P(r), highest power first: Cephes' expf.
// ln(2) is the sum of two floats, of which the first times an exponent is exact.
constexpr int kExpP = 6;
constexpr float kExp[kExpP] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
constexpr float kLog2E = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;

// Activations that are x / (1 + exp(t)): t = -1.702 x for QuickGELU, and twice the
// argument of tanh, negated, for 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
constexpr float kQuickGelu = -1.702f, kTanhGelu = -1.5957691216057308f, kTanhGeluCube = kTanhGelu * 0.044715f;

} // namespace
} // namespace fewbit
