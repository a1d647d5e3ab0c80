package pipeline

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/quant"
)

func tableOf(t *testing.T, p *Pipeline, req TableRequest) []byte {
	t.Helper()
	r, err := p.CalibrationTable(context.Background(), req, nil)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := r.Table.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func shardAt(t *testing.T, s string) calib.Shard {
	t.Helper()
	v, err := calib.ParseShard(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestShardsMerge: the tables of shards, whatever their number and order, merge
// into the bytes of one run, for both networks and several methods.
func TestShardsMerge(t *testing.T) {
	p := testPipeline(t)
	for _, k := range cases() {
		req := TableRequest{Model: save(t, k.m), Calib: npy(t, 3, k.data...), Samples: 40}
		for _, method := range []string{"", "entropy", "percentile:99.9"} {
			req.Config.Method, req.Shard = method, calib.Shard{}
			want := tableOf(t, p, req)
			for _, shards := range [][]string{{"2/2", "1/2"}, {"3/5", "1/5", "5/5", "2/5", "4/5"}} {
				var parts []*calib.Table
				for _, s := range shards {
					req.Shard = shardAt(t, s)
					part, err := calib.ReadTable(bytes.NewReader(tableOf(t, p, req)))
					if err != nil {
						t.Fatal(err)
					}
					parts = append(parts, part)
				}
				m, err := calib.Merge(parts...)
				if err != nil {
					t.Fatal(err)
				}
				var b bytes.Buffer
				if err := m.Write(&b); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(b.Bytes(), want) {
					t.Errorf("%s, method %q: %v do not merge into the table of one run", k.name, method, shards)
				}
			}
		}
	}
}

// TestQuantizeFromTable: a table gives the model that the same samples give
// when every choice that needs samples is off.
func TestQuantizeFromTable(t *testing.T) {
	p := testPipeline(t)
	for _, k := range cases() {
		src, samples := save(t, k.m), npy(t, 3, k.data...)
		cfg := quant.Config{Method: "percentile", Weights: quant.RTN, NoSmooth: true, NoBiasCorrection: true}
		table := filepath.Join(t.TempDir(), "t.json")
		if err := os.WriteFile(table, tableOf(t, p, TableRequest{Model: src, Calib: samples, Config: cfg}), 0o600); err != nil {
			t.Fatal(err)
		}
		var files [2][]byte
		for i, from := range []string{samples, table} {
			out := filepath.Join(t.TempDir(), "q.onnx")
			rep, err := p.Quantize(context.Background(), Request{Model: src, Out: out, Config: cfg, Calib: from, NoLatency: true, Force: true}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if rep.Calibration == nil || rep.Calibration.Samples != DefaultSamples {
				t.Errorf("receipt %+v", rep.Calibration)
			}
			if files[i], err = os.ReadFile(out); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(files[0], files[1]) {
			t.Errorf("%s: samples and their table give different models", k.name)
		}
	}
}

func TestTablesThatDoNotFit(t *testing.T) {
	p := testPipeline(t)
	a, b := save(t, mlp()), save(t, cnn())
	samples := npy(t, 3, 8, 9, 64)
	table := filepath.Join(t.TempDir(), "t.json")
	raw := tableOf(t, p, TableRequest{Model: a, Calib: samples})
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(table, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(raw)
	try := func(model string, c quant.Config) error {
		_, err := p.Quantize(context.Background(), Request{Model: model, Config: c, Calib: table}, nil)
		return err
	}
	if err := try(b, quant.Config{}); !errors.Is(err, ErrCalibration) {
		t.Errorf("another model's table: %v", err)
	}
	if err := try(a, quant.Config{Target: quant.QOperator}); !errors.Is(err, ErrCalibration) {
		t.Errorf("another target's table lacks outputs: %v", err)
	}
	if err := try(a, quant.Config{Equalize: true}); !errors.Is(err, quant.ErrConfig) {
		t.Errorf("equalization with a table gives %v", err)
	}
	write(raw[:len(raw)/2])
	if err := try(a, quant.Config{}); !errors.Is(err, calib.ErrTable) {
		t.Errorf("half a table: %v", err)
	}
	if _, ok, err := OpenTable(samples); ok || err != nil {
		t.Errorf("a data set is a table: %v, %v", ok, err)
	}
	if _, err := p.CalibrationTable(context.Background(), TableRequest{Model: a, Calib: samples, Shard: calib.Shard{Of: 3, Parts: []int{1, 2}}}, nil); !errors.Is(err, data.ErrOptions) {
		t.Errorf("two shards in one run: %v", err)
	}
}
