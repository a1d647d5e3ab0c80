package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/fewbit/fewbit/internal/eval"
)

// sample returns a complete report of a made-up run, the same on every call.
func sample() Report {
	rng := rand.New(rand.NewPCG(1, 2))
	nan := Num(math.NaN())
	var a, q []float64
	for range 200 {
		drift := math.Exp(.08 * rng.NormFloat64())
		a = append(a, 41*drift*math.Exp(.02*math.Abs(rng.NormFloat64())))
		q = append(q, 13*drift*math.Exp(.03*math.Abs(rng.NormFloat64())))
	}
	p := eval.Paired{BothRight: 918, RefOnly: 9, QuantOnly: 6, Neither: 67}
	ra, qa, d, pv := p.Ref(), p.Quant(), p.Difference(), p.McNemar()
	agree := eval.Proportion("top-1 agreement", 981, 1000)
	load, stolen, others := .42, .001, .03
	loss := .01
	r := Report{
		Created: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC),
		Command: []string{"fewbit", "quantize", "news.onnx", "-o", "news-int8.onnx", "--calib", "my texts.jsonl", "--method", "auto"},
		Recipe:  Recipe{Scheme: "int8", Target: "ort-cpu", Method: "auto", Granularity: "per-channel", Text: "scheme: int8\ntarget: ort-cpu\nsmooth: 0.6\n"},
		Machine: Machine{CPU: "Example CPU @ 2.0 GHz", Cores: 2, Threads: 2, Flags: []string{"avx2", "avx512f", "avx512_vnni"}, OS: "linux/amd64", Engine: "ONNX Runtime 1.32.0", Fewbit: "v0.1.0"},
		Model:   Model{Name: "news.onnx", SHA256: "3f5a0c", Opset: 21, Producer: "pytorch", Nodes: 161, Parameters: 22_565_381, Bytes: 90_387_606},
		Quantized: Model{Name: "news-int8.onnx", SHA256: "9b01de",
			Opset: 21, Nodes: 233, Parameters: 22_565_381, Bytes: 22_972_370},
		Calibration: &Calibration{Source: "texts.jsonl", Samples: 128, Duplicates: 2, Tensors: 48, Constant: 1, Seconds: 3.4, Clipped: 2.1e-5,
			ConstantNames: []string{"/encoder/mask/Constant_output_0"}, LargeNames: []string{"/encoder/mask/Mul_output_0"}, Warnings: []string{"2 of 128 calibration samples are duplicates"}},
		Evaluation: &eval.Result{
			Samples: 1000, Labelled: 1000, Output: "logits", Kind: eval.Classifier,
			RefAccuracy: &ra, QuantAccuracy: &qa, Difference: &d, Paired: &p, PValue: &pv, Agreement: &agree,
			Cosine:     eval.Summary{N: 1000, Mean: .99964, Min: .9971, P1: .9982, P5: .9988, P50: .9997, P90: .99991, P99: .99997, Max: .99999},
			CosineMean: eval.Score{Name: "cosine", Value: .99964, Lo: .99961, Hi: .99967, N: 1000, HigherIsBetter: true}, SQNR: 31.2,
			Fidelity: eval.Error{Count: 5000, Signal: 13180, Noise: 10, MaxAbs: .31},
			Latency: &eval.Latency{Candidates: []eval.LatencyStats{eval.StatsOf(a), eval.StatsOf(q)},
				Ratios: []eval.Ratio{eval.PairedRatio(a, a), eval.PairedRatio(a, q)}, Noise: eval.Noise{Load1: &load, Stolen: &stolen, Others: &others}},
		},
		Memory: Memory{FP32Peak: 201_000_000, QuantPeak: 96_000_000},
		Passes: []Pass{{Name: "fold-constants", Seconds: .021, Changed: 14}, {Name: "calibrate", Seconds: 3.4, Changed: 48}, {Name: "smooth-quant", Seconds: 1.9, Changed: 24, Gain: "SQNR 21.3 -> 27.9 dB"},
			{Name: "bias-correction", Seconds: 2.4, Changed: 36, Gain: "SQNR 27.9 -> 28.0 dB"}, {Name: "lower-ort-cpu", Seconds: .033, Changed: 36}},
		Gate:     eval.Gate{MaxLoss: &loss, SLOMS: 50},
		Warnings: []string{"tensor /encoder/mask/Mul_output_0 has a range past 1e6: padded calibration data?"},
	}
	for layer := range 6 {
		for i, op := range []string{"query", "key", "value", "scores", "attention/output", "intermediate", "output"} {
			o := Operator{Name: fmt.Sprintf("/encoder/layer.%d/%s/MatMul", layer, op), Op: "MatMul", Precision: "int8", Integer: true, MACs: 18_874_368, SQNR: Num(24 + 4*rng.NormFloat64() + float64(layer)), Cosine: .999}
			switch {
			case i == 3:
				o.Integer, o.Precision, o.MACs, o.SQNR, o.Rule = false, "fp32", 6_291_456, nan, "both inputs are activations"
			case i >= 5:
				o.MACs *= 4
			}
			r.Operators = append(r.Operators, o)
			if i == 3 {
				continue
			}
			r.Tensors = append(r.Tensors, choice(rng, o.Name, i >= 5))
		}
	}
	r.Operators = append(r.Operators, Operator{Name: "/classifier/Gemm", Op: "Gemm", Integer: true, Precision: "int8", MACs: 1920, SQNR: eval.MaxSQNR})
	r.Integer = CountMACs(r.Operators)
	r.Judge(false)
	return r
}

// choice makes up a tensor with a bell-shaped histogram and, where long, a tail.
func choice(rng *rand.Rand, op string, long bool) TensorChoice {
	h := &Histogram{Lo: -6, Hi: 6, Counts: make([]int64, 256)}
	for i := range h.Counts {
		x := -6 + 12*(float64(i)+.5)/256
		h.Counts[i] = int64(1e6 * math.Exp(-x*x))
		if long && x > 0 {
			h.Counts[i] += int64(40 * math.Exp(-x/2))
		}
	}
	e := Num(1e-3 * math.Exp(rng.NormFloat64()))
	return TensorChoice{
		Name: op + "_input", Operator: op, Method: "mse", Type: "UINT8", Granularity: "per-tensor", Lo: -3.1, Hi: 3.4, ObservedLo: -5.7, ObservedHi: 5.9, Scale: .0255, ZeroPoint: 122, Error: e,
		Candidates: []Candidate{{"minmax", -5.7, 5.9, 2 * e}, {"entropy", -2.1, 2.2, 3 * e}, {"percentile", -3.9, 3.8, 1.2 * e}, {"mse", -3.1, 3.4, e}},
		Why:        "lowest output error of 4", Histogram: h,
	}
}
