package calib

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

func feeds(seed uint64, rows int64) engine.Feeds {
	return engine.Feeds{
		"a": tensor.From(normal(seed, int(rows)*8, 1), 1, rows, 8),
		"b": tensor.From(normal(seed+1000, int(rows)*12, 3), 1, 3, rows, 4),
		"c": tensor.From(relu(normal(seed+2000, 5000, 2)), 5000),
	}
}

var specs = map[string]Spec{
	"a": {ChannelMax: true, ChannelMean: true, Axis: -1},
	"b": {ChannelMean: true, Axis: 1},
	"c": {},
}

func TestCollectorInParallelEqualsInOrder(t *testing.T) {
	const samples = 24
	want := NewCollector(1, specs)
	got := NewCollector(3, specs)
	var wg sync.WaitGroup
	for i := range uint64(samples) {
		f := feeds(i, 1+int64(i%5))
		id := SampleHash(f)
		if err := want.Observe(context.Background(), f, id); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := got.Observe(context.Background(), f, id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got.Samples() != samples {
		t.Errorf("%d samples", got.Samples())
	}
	if a, b := written(t, want.Table("")), written(t, got.Table("")); a != b {
		t.Error("parallel observation gives another table")
	}
}

func TestCollectorRefuses(t *testing.T) {
	ctx := context.Background()
	c := NewCollector(0, map[string]Spec{"a": {ChannelMax: true, Axis: -1}, "n": {ChannelMean: true, Axis: 1}})
	x := tensor.From([]float32{1, 2, 3, 4}, 2, 2)
	if err := c.Observe(ctx, engine.Feeds{"a": x, "n": x, "other": x}); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]engine.Feeds{
		"other channels": {"a": tensor.From([]float32{1, 2, 3}, 1, 3)},
		"other sums":     {"n": tensor.From([]float32{1, 2, 3}, 1, 3)},
		"no such axis":   {"n": tensor.From([]float32{1, 2, 3}, 3)},
		"wrong length":   {"a": {Type: tensor.Float32, Dims: []int64{1, 3}, Data: x.Data}},
		"integers":       {"a": tensor.From([]int64{1, 2}, 1, 2)},
		"negative":       {"a": {Type: tensor.Float32, Dims: []int64{-1, -4}, Data: x.Data}},
	} {
		err := c.Observe(ctx, f, SampleID{})
		if err == nil || !strings.Contains(err.Error(), `tensor "`) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c.Samples() != 0 {
		t.Error("refused samples are counted")
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := c.Observe(cancelled, engine.Feeds{"a": x}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestSampleHash(t *testing.T) {
	a := feeds(1, 2)
	if SampleHash(a) != SampleHash(feeds(1, 2)) {
		t.Error("equal feeds, different hashes")
	}
	seen := map[SampleID]string{SampleHash(a): "a"}
	for name, f := range map[string]engine.Feeds{
		"other values":   feeds(2, 2),
		"missing":        {"a": a["a"], "b": a["b"]},
		"nil":            {"a": a["a"], "b": a["b"], "c": nil},
		"renamed":        {"a": a["a"], "b": a["b"], "d": a["c"]},
		"reshaped":       {"a": a["a"], "b": a["b"], "c": {Type: tensor.Float32, Dims: []int64{5, 1000}, Data: a["c"].Data}},
		"other type":     {"a": a["a"], "b": a["b"], "c": {Type: tensor.Int32, Dims: a["c"].Dims, Data: a["c"].Data}},
		"strings":        {"s": {Type: tensor.String, Dims: []int64{2}, Strings: [][]byte{[]byte("ab"), []byte("c")}}},
		"strings, moved": {"s": {Type: tensor.String, Dims: []int64{2}, Strings: [][]byte{[]byte("a"), []byte("bc")}}},
		"empty":          {},
	} {
		h := SampleHash(f)
		if other, twice := seen[h]; twice {
			t.Errorf("%s and %s have the same hash", name, other)
		}
		seen[h] = name
	}
}

func TestReceipt(t *testing.T) {
	ctx := context.Background()
	c := NewCollector(2, map[string]Spec{"ok": {}, "const": {}, "mask": {}, "nan": {}, "never": {}, "allnan": {}})
	nan := float32(math.NaN())
	for i := range 3 {
		f := engine.Feeds{
			"ok":     tensor.From(normal(5, 10000, 1), 10000),
			"const":  tensor.From([]float32{2, 2}, 2),
			"mask":   tensor.From([]float32{1, -3.4028235e38}, 2),
			"nan":    tensor.From([]float32{nan, 1, 2, float32(math.Inf(-1))}, 4),
			"allnan": tensor.From([]float32{nan}, 1),
		}
		if err := c.Observe(ctx, f, SampleID{byte(i / 2)}); err != nil {
			t.Fatal(err)
		}
	}
	table := c.Table("")
	r, err := table.Receipt(map[string]Range{"ok": {-1, 1}, "const": {0, 2}})
	if !errors.Is(err, ErrAllNaN) || !errors.Is(err, ErrNoData) || !strings.Contains(err.Error(), `"allnan"`) || !strings.Contains(err.Error(), `"never"`) {
		t.Errorf("error %v", err)
	}
	if r.Samples != 3 || r.Duplicates != 1 || len(r.Tensors) != 6 {
		t.Errorf("%+v", r)
	}
	if ok := r.Tensors["ok"]; math.Abs(ok.ClippedShare-.317) > .02 || ok.Elements != 30000 || ok.Range == nil || ok.Wide || ok.Constant {
		t.Errorf("%+v", ok)
	}
	if k := r.Tensors["const"]; !k.Constant || k.ClippedShare != 0 {
		t.Errorf("%+v", k)
	}
	if !r.Tensors["mask"].Wide || r.Tensors["nan"].NaN != 3 || r.Tensors["nan"].Inf != 3 {
		t.Errorf("%+v", r.Tensors)
	}
	for _, want := range []string{"repeat an earlier one", `"const": every value is 2`, `"mask": range [-3.4028235e+38, 1] passes 1e6`, `"nan": 3 NaN and 3 infinite of 12`} {
		if !strings.Contains(strings.Join(r.Warnings, "\n"), want) {
			t.Errorf("no warning says %q: %q", want, r.Warnings)
		}
	}
	if _, err := (&Table{}).Receipt(nil); !errors.Is(err, ErrNoData) {
		t.Error(err)
	}
}

// randomTable observes the samples of one shard, in an order of its own.
func shardOf(t *testing.T, s Shard, samples []engine.Feeds, r *rand.Rand) *Table {
	t.Helper()
	c := NewCollector(2, specs)
	for _, i := range r.Perm(len(samples)) {
		if !s.Has(i) {
			continue
		}
		if err := c.Observe(context.Background(), samples[i], SampleHash(samples[i])); err != nil {
			t.Fatal(err)
		}
	}
	table := c.Table(strings.Repeat("ab", 32))
	table.Method, table.Shard = MethodMSE, s
	return table
}

func written(t *testing.T, table *Table) string {
	t.Helper()
	var b strings.Builder
	if err := table.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Random data, random splits, random orders, a trip through the file: the same
// bytes as one run over everything.
func TestMergeOfShardsEqualsOneRun(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 8))
		samples := make([]engine.Feeds, 3+r.IntN(8))
		for i := range samples {
			rows := int64(1 + r.IntN(6))
			samples[i] = engine.Feeds{
				"a": tensor.From(hard(r, int(rows)*8), 1, rows, 8),
				"b": tensor.From(hard(r, int(rows)*12), 1, 3, rows, 4),
				"c": tensor.From(hard(r, 6000), 6000),
			}
		}
		samples[len(samples)-1] = samples[0] // a duplicate, in some shard
		// A tensor without one finite value has no range; give each one.
		for _, n := range []string{"a", "b", "c"} {
			tensor.View[float32](samples[0][n])[0] = 1
		}
		fill := func(table *Table) *Table {
			if err := table.Fill(U8, MethodMinMax, MethodPercentile); err != nil {
				t.Fatal(err)
			}
			return table
		}
		want := written(t, fill(shardOf(t, Shard{}, samples, r)))
		of := 1 + r.IntN(3)
		tables := make([]*Table, of)
		for i := range tables {
			s, err := ParseShard(fmt.Sprintf("%d/%d", i+1, of))
			if err != nil {
				t.Fatal(err)
			}
			shard := shardOf(t, s, samples, r)
			shard.Tensors["a"].Observe(nil, nil) // an empty tensor changes the count of calls only
			shard.Tensors["a"].calls--
			text := ""
			if shard.Fill(U8, MethodMinMax, MethodPercentile) != nil { // a shard may have seen no value
				shard.Methods = nil
			}
			text = written(t, shard)
			if tables[i], err = ReadTable(strings.NewReader(text)); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			tables[i].Methods, tables[i].Scheme = nil, Scheme{}
		}
		r.Shuffle(of, func(i, j int) { tables[i], tables[j] = tables[j], tables[i] })
		merged, err := Merge(tables...)
		if err != nil {
			t.Fatal(err)
		}
		if got := written(t, fill(merged)); got != want {
			t.Fatalf("seed %d: %d shards give other bytes", seed, of)
		}
		if merged.Duplicates() != 1 {
			t.Errorf("%d duplicates", merged.Duplicates())
		}
		// In two steps as well.
		if of > 2 {
			part, err := Merge(tables[:2]...)
			if err != nil || len(part.Shard.Parts) != 2 {
				t.Fatal(part, err)
			}
			all, err := Merge(tables[2], part)
			if err != nil || written(t, fill(all)) != want {
				t.Fatalf("seed %d: merging in two steps gives other bytes (%v)", seed, err)
			}
		}
	}
}
