package calib

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// small is a table with one of everything.
func small(t testing.TB, moving bool) *Table {
	c := NewCollector(1, map[string]Spec{
		"enc/MatMul:0":   {ChannelMax: true, ChannelMean: true, Axis: -1, MovingAverage: moving},
		"a \"quoted\" é": {},
		"never seen":     {ChannelMax: true, ChannelMean: true, Axis: 1},
		"only NaN":       {},
	})
	for i := range 2 {
		f := engine.Feeds{
			"enc/MatMul:0":   tensor.From([]float32{-1.5, 0, 3e-40, 1e5, .25, float32(i)}, 2, 3),
			"a \"quoted\" é": tensor.From([]float32{-2, -3, -3}, 3),
			"only NaN":       tensor.From([]float32{float32(math.NaN()), float32(math.Inf(-1))}, 2),
		}
		if err := c.Observe(context.Background(), f, SampleID{1, byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	table := c.Table(strings.Repeat("0f", 32))
	table.Method, table.Shard = MethodEntropy, Shard{3, []int{1, 3}}
	return table
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s changed (-update rewrites it):\n%s", path, got)
	}
}

func TestTableGolden(t *testing.T) {
	table := small(t, true)
	golden(t, "table.json", written(t, table))
	back, err := ReadTable(strings.NewReader(written(t, table)))
	if err != nil {
		t.Fatal(err)
	}
	if again := written(t, back); again != written(t, table) {
		t.Errorf("reading and writing changes the table:\n%s", again)
	}
	for name, st := range table.Tensors {
		if err := equalHist(&back.Tensors[name].hist, &st.hist); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestTableRangesRoundTrip(t *testing.T) {
	table := small(t, true)
	delete(table.Tensors, "never seen")
	if err := table.Fill(U8, MethodMinMax); !errors.Is(err, ErrAllNaN) {
		t.Fatal(err)
	}
	if _, ok := table.Stored(MethodMinMax); ok {
		t.Error("ranges of a failed Fill are stored")
	}
	delete(table.Tensors, "only NaN")
	if err := table.Fill(Scheme{}, MethodMinMax); !errors.Is(err, ErrScheme) {
		t.Fatal(err)
	}
	if err := table.Fill(U8, "what"); !errors.Is(err, ErrMethod) {
		t.Fatal(err)
	}
	delete(table.Tensors, "a \"quoted\" é")
	if err := table.Fill(U8, MethodPercentile, MethodMinMax, MethodMovingAverage); err != nil {
		t.Fatal(err)
	}
	back, err := ReadTable(strings.NewReader(written(t, table)))
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := back.Stored(MethodMinMax); !ok || r["enc/MatMul:0"] != (Range{-1.5, 1e5}) {
		t.Error(r, ok)
	}
	if r, ok := back.Stored(MethodMovingAverage); !ok || r["enc/MatMul:0"] != (Range{-1.5, 1e5}) {
		t.Error(r, ok)
	}
	if written(t, back) != written(t, table) {
		t.Error("reading and writing changes the ranges")
	}
}

func TestTableOfHardValuesRoundTrips(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 9))
		table := &Table{Tensors: map[string]*Stats{"x": NewStats(Spec{})}}
		if err := table.Tensors["x"].Observe(hard(r, r.IntN(5000)), nil); err != nil {
			t.Fatal(err)
		}
		text := written(t, table)
		back, err := ReadTable(strings.NewReader(text))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if written(t, back) != text {
			t.Fatalf("seed %d: other bytes", seed)
		}
	}
}

func TestMergeRefuses(t *testing.T) {
	mutate := func(f func(*Table)) *Table {
		table := small(t, false)
		f(table)
		return table
	}
	base := small(t, false)
	for name, o := range map[string]*Table{
		"other model":    mutate(func(x *Table) { x.ModelSHA256 = "" }),
		"other method":   mutate(func(x *Table) { x.Method = "" }),
		"other ranges":   mutate(func(x *Table) { x.Methods = []string{"minmax"} }),
		"fewer tensors":  mutate(func(x *Table) { delete(x.Tensors, "only NaN") }),
		"other tensors":  mutate(func(x *Table) { x.Tensors["y"] = x.Tensors["only NaN"]; delete(x.Tensors, "only NaN") }),
		"other observer": mutate(func(x *Table) { x.Tensors["only NaN"] = NewStats(Spec{ChannelMax: true}) }),
		"same shard":     mutate(func(x *Table) { x.Shard = Shard{3, []int{3}} }),
		"other split":    mutate(func(x *Table) { x.Shard = Shard{2, []int{2}} }),
		"everything":     mutate(func(x *Table) { x.Shard = Shard{} }),
		"other channels": mutate(func(x *Table) {
			x.Shard = Shard{3, []int{2}}
			x.Tensors["enc/MatMul:0"].max = &ChannelMax{make([]float32, 9)}
		}),
	} {
		if _, err := Merge(base, o); !errors.Is(err, ErrMerge) || !strings.Contains(err.Error(), "table 2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Merge(); !errors.Is(err, ErrMerge) {
		t.Error(err)
	}
	m := small(t, true)
	if _, err := Merge(m, mutate(func(x *Table) { x.Shard = Shard{3, []int{2}} })); !errors.Is(err, ErrOrderDependent) {
		t.Error(err)
	}
	if one, err := Merge(m); err != nil || written(t, one) != written(t, m) {
		t.Errorf("a table merged with nothing changes: %v", err)
	}
}

func TestShard(t *testing.T) {
	for _, text := range []string{"", "1/2", "2/2", "1,3/4", "4096/4096"} {
		s, err := ParseShard(text)
		if err != nil || s.String() != text {
			t.Errorf("%q: %v %v", text, s, err)
		}
	}
	for _, text := range []string{"/", "1", "0/2", "3/2", "1/0", "1/4097", "2,1/4", "1,1/4", "+1/2", "01/2", "1/02", "a/b", "-1/2", "1/2/3", ",1/2"} {
		if _, err := ParseShard(text); !errors.Is(err, ErrShard) {
			t.Errorf("%q: %v", text, err)
		}
	}
	n := 0
	for i := range 100 {
		for _, text := range []string{"1/3", "2/3", "3/3"} {
			if s, _ := ParseShard(text); s.Has(i) {
				n++
			}
		}
	}
	if n != 100 {
		t.Errorf("three thirds of 100 samples are %d", n)
	}
	if s, err := ParseShard("1/1"); err != nil || s.Of != 0 {
		t.Errorf("1/1 is everything: %v %v", s, err)
	}
}

// edits of the golden table that no writer makes.
func TestReadTableRefuses(t *testing.T) {
	b, err := os.ReadFile("testdata/table.json")
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	for _, c := range []struct{ name, old, new, says string }{
		{"text", good, "hello", "not a complete JSON"},
		{"empty", good, "", "not a complete JSON"},
		{"truncated", good[len(good)/2:], "", "not a complete JSON"},
		{"an array", good, "[]", "expected \"{\""},
		{"more behind", "}}\n", "}}\n{}", "follows the table"},
		{"another version", `"version":1`, `"version":2`, "reads version 1"},
		{"no version", `"version":1,`, ``, `"version" is missing`},
		{"twice", `"version":1`, `"version":1,"version":1`, "twice"},
		{"tensor twice", `"never seen"`, `"only NaN"`, "twice"},
		{"unknown key", `"shard"`, `"shards"`, "unknown key"},
		{"unknown key in a tensor", `"nan":2`, `"nans":2`, "unknown key"},
		{"a hash of another length", `"model_sha256":"0f`, `"model_sha256":"`, "64 hexadecimal"},
		{"fewer samples", `"samples":2`, `"samples":3`, "3 samples and 2"},
		{"negative", `"samples":2`, `"samples":-2`, "expected an integer"},
		{"fraction", `"samples":2`, `"samples":2.5`, "expected an integer"},
		{"a bad id", `"0100`, `"01zz`, "not 32 hexadecimal"},
		{"a short id", `"0100`, `"01`, "not 32 hexadecimal"},
		{"a bad shard", `"1,3/3"`, `"1,4/3"`, "expected i/n"},
		{"another count", `"count":6`, `"count":7`, "hold 6 values, expected 7"},
		{"a huge count", `"count":6`, `"count":99999999999999999999`, "expected a count"},
		{"another maximum", `"max":-2`, `"max":-1`, "outermost"},
		{"a far maximum", `"max":100000`, `"max":1e20`, "do not fit"},
		{"an infinite maximum", `"max":100000`, `"max":1e60`, "no finite float32"},
		{"another width", `"exp":5`, `"exp":6`, "do not fit"},
		{"a wild width", `"exp":5`, `"exp":500`, "expected an integer"},
		{"a bin too far", `3125:2`, `4096:2`, "expected 128 to 4095"},
		{"a bin too near", `3125:2`, `12:2`, "expected runs"},
		{"an empty count", `3125:2`, `3125:`, "expected a positive"},
		{"a zero count", `3125:2`, `3125:0,2`, "expected a positive"},
		{"a trailing comma", `3125:2`, `3125:2,`, "expected a positive"},
		{"runs that touch", `3125:2`, `3125:1;3126:1`, "expected runs"},
		{"no maximum", `"max":100000,`, ``, "present: false"},
		{"a negative channel", `"channel_max":[100000`, `"channel_max":[-1`, "negative"},
		{"a sum of no number", `"sum":["`, `"sum":["x`, "hexadecimal integer"},
		{"channels without axis", `"axis":-1,`, ``, "do not come together"},
		{"a wild weight", `"c":0.01`, `"c":2`, "weight"},
		{"three infinities", `"inf":[0,0]`, `"inf":[0,0,0]`, "more than 2"},
		{"one infinity", `"inf":[0,0]`, `"inf":[0]`, "expected 2"},
		{"a range of no method", `"inf":[0,0]`, `"inf":[0,0],"ranges":{"x":[-1,1]}`, "expected 0"},
		{"a range without 0", `"inf":[0,0]`, `"inf":[0,0],"ranges":{"x":[1,2]}`, "around 0"},
	} {
		if !strings.Contains(good, c.old) {
			t.Errorf("%s: the golden table has no %s", c.name, c.old)
			continue
		}
		_, err := ReadTable(strings.NewReader(strings.Replace(good, c.old, c.new, 1)))
		if !errors.Is(err, ErrTable) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, expected it to say %q", c.name, err, c.says)
		}
	}
}

func TestReadTableLimits(t *testing.T) {
	long := strings.Repeat("x", MaxNameBytes+1)
	if _, err := ReadTable(strings.NewReader(`{"version":1,"samples":0,"tensors":{"` + long + `":{}}}`)); !errors.Is(err, ErrTable) || !strings.Contains(err.Error(), "at most") {
		t.Error(err)
	}
	// A file that unfolds to more memory than it is worth.
	one := `{"calls":1,"count":1,"zeros":0,"nan":0,"inf":[0,0],"min":1,"max":1,"exp":-11,"pos":"2048:1","neg":"","pos_low":"","neg_low":""}`
	d := &decoder{memory: 100}
	d.d = json.NewDecoder(strings.NewReader(one))
	d.d.UseNumber()
	if _, err := d.stats(); !errors.Is(err, ErrTable) || !strings.Contains(err.Error(), "MiB") {
		t.Error(err)
	}
	if err := (&Table{Tensors: map[string]*Stats{"\xff": NewStats(Spec{})}}).Write(new(bytes.Buffer)); !errors.Is(err, ErrTable) {
		t.Error(err)
	}
}

// Whatever is accepted is written back to something that is accepted and equal.
func FuzzReadTable(f *testing.F) {
	for _, name := range []string{"testdata/table.json"} {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"version":1,"samples":0,"tensors":{}}`))
	f.Add([]byte(`{"version":1,"samples":0,"scheme":{"type":"UINT8","symmetric":false,"bits":0,"reduce_range":false},"methods":["minmax"],"tensors":{"x":{"calls":1,"count":1,"zeros":0,"nan":0,"inf":[0,0],"min":1,"max":1,"exp":-11,"pos":"2048:1","neg":"","pos_low":"","neg_low":"","ranges":{"minmax":[0,1]}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := ReadTable(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrTable) {
				t.Fatalf("not ErrTable: %v", err)
			}
			return
		}
		var once, twice bytes.Buffer
		if err := table.Write(&once); err != nil {
			t.Fatal(err)
		}
		back, err := ReadTable(bytes.NewReader(once.Bytes()))
		if err != nil {
			t.Fatalf("written and refused: %v\n%s", err, once.String())
		}
		if err := back.Write(&twice); err != nil || !bytes.Equal(once.Bytes(), twice.Bytes()) {
			t.Fatalf("%v\n%s\n%s", err, once.String(), twice.String())
		}
		for _, n := range table.Names() { // and it can be used
			for _, m := range Names() {
				if _, err := table.Tensors[n].Threshold(m, U8); err != nil && !errors.Is(err, ErrNoData) && !errors.Is(err, ErrAllNaN) {
					t.Fatal(err)
				}
			}
		}
		if _, err := Merge(table); err != nil && !errors.Is(err, ErrMethod) && !errors.Is(err, ErrNoData) && !errors.Is(err, ErrAllNaN) {
			t.Fatal(err)
		}
	})
}
