package http

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

func parse(body string) (*inferRequest, error) {
	r := &inferRequest{}
	err := parseInfer([]byte(body), r, &arena{})
	return r, err
}

// one is a request with a single input.
func one(shape, datatype, data string) string {
	return fmt.Sprintf(`{"inputs":[{"name":"x","shape":%s,"datatype":%q,"data":%s}]}`, shape, datatype, data)
}

func TestParseTypes(t *testing.T) {
	for _, c := range []struct {
		datatype, data string
		want           any
	}{
		{"FP32", "[1,-0.5]", []float32{1, -.5}}, {"FP64", "[1e300,2]", []float64{1e300, 2}},
		{"INT8", "[-128,127]", []int8{-128, 127}}, {"INT16", "[-32768,32767]", []int16{-32768, 32767}},
		{"INT32", "[-2147483648,2147483647]", []int32{math.MinInt32, math.MaxInt32}}, {"INT64", "[-9223372036854775808,9223372036854775807]", []int64{math.MinInt64, math.MaxInt64}},
		{"UINT8", "[0,255]", []uint8{0, 255}}, {"UINT16", "[0,65535]", []uint16{0, 65535}},
		{"UINT32", "[0,4294967295]", []uint32{0, math.MaxUint32}}, {"UINT64", "[0,18446744073709551615]", []uint64{0, math.MaxUint64}},
		{"BOOL", "[true,false]", []bool{true, false}},
	} {
		r, err := parse(one("[2]", c.datatype, c.data))
		if err != nil {
			t.Errorf("%s: %v", c.datatype, err)
			continue
		}
		got := &r.inputs[0].tensor
		if err := got.Check(); err != nil {
			t.Errorf("%s: %v", c.datatype, err)
		}
		b, _ := appendData(nil, "x", got)
		if back := "[" + string(b) + "]"; !sameJSON(back, c.data) {
			t.Errorf("%s: written back as %s, want %s", c.datatype, back, c.data)
		}
		want := make([]byte, 0, 16)
		if want, err = binary.Append(want, binary.LittleEndian, c.want); err != nil || !slices.Equal(got.Data, want) {
			t.Errorf("%s: bytes %x, want %x", c.datatype, got.Data, want)
		}
	}
}

func sameJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && fmt.Sprint(x) == fmt.Sprint(y)
}

// Whatever the order of the keys and the form of the data, the tensor is the
// same.
func TestParseFormsAgree(t *testing.T) {
	want := []float32{1, 2, 3, 4, 5, 6}
	for _, body := range []string{
		one("[1,2,3]", "FP32", "[1,2,3,4,5,6]"), one("[1,2,3]", "FP32", "[[[1,2,3],[4,5,6]]]"), one("[6]", "FP32", " [ 1 , 2,3,\n4,5,6 ] "),
		`{"inputs":[{"data":[[1,2,3],[4,5,6]],"datatype":"FP32","shape":[2,3],"name":"x"}]}`,
		`{"inputs":[{"parameters":null,"datatype":"FP32","data":[[1,2,3],[4,5,6]],"name":"x","shape":[2,3],"extra":{"a":[1]}}],"outputs":null,"parameters":{"priority":3},"x":[[]]}`,
	} {
		r, err := parse(body)
		if err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		if got := tensor.View[float32](&r.inputs[0].tensor); !slices.Equal(got, want) {
			t.Errorf("%s: %v", body, got)
		}
	}
	for _, shape := range []string{"[0]", "[0,3]", "[2,0]"} {
		data := map[string]string{"[0]": "[]", "[0,3]": "[]", "[2,0]": "[[],[]]"}[shape]
		if _, err := parse(one(shape, "FP32", data)); err != nil {
			t.Errorf("empty tensor %s: %v", shape, err)
		}
	}
	if r, err := parse(one("[]", "INT32", "[5]")); err != nil || r.inputs[0].tensor.Len() != 1 {
		t.Errorf("scalar: %v", err)
	}
}

// badBodies are items 1 to 3 and 5 of serving.md section 7 that the parser
// alone refuses.
var badBodies = map[string]string{
	"overflow":                  one("[4611686018427387904,4]", "FP32", "[1]"),
	"negative":                  one("[-1,3]", "FP32", "[1]"),
	"2^63":                      one("[9223372036854775808]", "FP32", "[1]"),
	"2^63-1":                    one("[9223372036854775807]", "FP32", "[1]"),
	"large":                     one("[200000000]", "FP32", "[1]"),
	"large strings":             one("[200000000]", "BYTES", `["a"]`),
	"a million dimensions":      one("["+strings.Repeat("1,", 999_999)+"1]", "FP32", "[1]"),
	"17 dimensions":             one("["+strings.Repeat("1,", 16)+"1]", "FP32", "[1]"),
	"fraction in shape":         one("[1.5]", "FP32", "[1]"),
	"string in shape":           one(`["1"]`, "FP32", "[1]"),
	"shape a number":            one("3", "FP32", "[1,2,3]"),
	"too few":                   one("[3]", "FP32", "[1,2]"),
	"too many":                  one("[3]", "FP32", "[1,2,3,4]"),
	"nested unlike shape":       one("[2,3]", "FP32", "[[1,2],[3,4],[5,6]]"),
	"ragged":                    one("[2,2]", "FP32", "[[1,2,3],[4]]"),
	"half nested":               one("[1,2,2]", "FP32", "[[1,2],[3,4]]"),
	"nested too deep":           one("[1]", "FP32", "[[1]]"),
	"mixed nesting":             one("[2,1]", "FP32", "[1,[2]]"),
	"mixed nesting 2":           one("[2,1]", "FP32", "[[1],2]"),
	"trailing comma":            one("[2]", "FP32", "[1,]"),
	"leading comma":             one("[1]", "FP32", "[,1]"),
	"no comma":                  one("[2]", "FP32", "[1 2]"),
	"100k deep":                 one("[1]", "FP32", strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000)),
	"100k deep elsewhere":       `{"x":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`,
	"100k deep objects":         `{"parameters":` + strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000) + `}`,
	"100k deep before the type": `{"inputs":[{"data":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `,"name":"x","shape":[1],"datatype":"FP32"}]}`,
	"duplicate inputs":          `{"inputs":[],"inputs":[]}`,
	"duplicate id":              `{"id":"a","id":"b","inputs":[]}`,
	"duplicate data":            `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1],"data":[2]}]}`,
	"duplicate name":            `{"inputs":[{"name":"x","name":"y","shape":[1],"datatype":"FP32","data":[1]}]}`,
	"duplicate timeout":         `{"parameters":{"timeout":1,"timeout":2},"inputs":[]}`,
	"escaped duplicate":         `{"id":"a","\u0069d":"b","inputs":[]}`,
	"input twice":               `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]},{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}`,
	"output twice":              `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}],"outputs":[{"name":"y"},{"name":"y"}]}`,
	"NaN":                       one("[1]", "FP32", "[NaN]"),
	"Infinity":                  one("[1]", "FP32", "[Infinity]"),
	"-Infinity":                 one("[1]", "FP32", "[-Infinity]"),
	"1e400":                     one("[1]", "FP64", "[1e400]"),
	"1e39 as FP32":              one("[1]", "FP32", "[1e39]"),
	"null element":              one("[1]", "FP32", "[null]"),
	"string element":            one("[1]", "FP32", `["1"]`),
	"bool element":              one("[1]", "FP32", "[true]"),
	"object element":            one("[1]", "FP32", "[{}]"),
	"hexadecimal":               one("[1]", "INT64", "[0x10]"),
	"leading zero":              one("[1]", "INT64", "[01]"),
	"plus":                      one("[1]", "FP32", "[+1]"),
	"fraction as INT64":         one("[1]", "INT64", "[1.5]"),
	"256 as UINT8":              one("[1]", "UINT8", "[256]"),
	"-1 as UINT8":               one("[1]", "UINT8", "[-1]"),
	"128 as INT8":               one("[1]", "INT8", "[128]"),
	"2^31 as INT32":             one("[1]", "INT32", "[2147483648]"),
	"2^63 as INT64":             one("[1]", "INT64", "[9223372036854775808]"),
	"2^64 as UINT64":            one("[1]", "UINT64", "[18446744073709551616]"),
	"1 as BOOL":                 one("[1]", "BOOL", "[1]"),
	"number as BYTES":           one("[1]", "BYTES", "[1]"),
	"lone surrogate":            one("[1]", "BYTES", `["\ud800"]`),
	"not UTF-8":                 one("[1]", "BYTES", "[\"\xff\"]"),
	"control character":         one("[1]", "BYTES", "[\"a\x00\"]"),
	"FP16 as JSON":              one("[1]", "FP16", "[1]"),
	"unknown datatype":          one("[1]", "FP8", "[1]"),
	"lower case datatype":       one("[1]", "fp32", "[1]"),
	"data a string":             one("[1]", "FP32", `"1"`),
	"data an object":            one("[1]", "FP32", `{}`),
	"data missing":              `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}`,
	"name missing":              `{"inputs":[{"shape":[1],"datatype":"FP32","data":[1]}]}`,
	"name null":                 `{"inputs":[{"name":null,"shape":[1],"datatype":"FP32","data":[1]}]}`,
	"name empty":                `{"inputs":[{"name":"","shape":[1],"datatype":"FP32","data":[1]}]}`,
	"name 10 kB":                `{"inputs":[{"name":"` + strings.Repeat("x", 10_000) + `","shape":[1],"datatype":"FP32","data":[1]}]}`,
	"shape missing":             `{"inputs":[{"name":"x","datatype":"FP32","data":[1]}]}`,
	"datatype missing":          `{"inputs":[{"name":"x","shape":[1],"data":[1]}]}`,
	"datatype a number":         `{"inputs":[{"name":"x","shape":[1],"datatype":1,"data":[1]}]}`,
	"inputs an object":          `{"inputs":{}}`,
	"inputs null":               `{"inputs":null}`,
	"inputs empty":              `{"inputs":[]}`,
	"inputs missing":            `{}`,
	"an input is a number":      `{"inputs":[1]}`,
	"257 inputs":                `{"inputs":[` + strings.Repeat(`{"name":"x","shape":[1],"datatype":"FP32","data":[1]},`, 257) + `]}`,
	"id a number":               `{"id":1,"inputs":[]}`,
	"id long":                   `{"id":"` + strings.Repeat("x", 2000) + `","inputs":[]}`,
	"parameters a list":         `{"parameters":[],"inputs":[]}`,
	"timeout negative":          `{"parameters":{"timeout":-1},"inputs":[]}`,
	"timeout a fraction":        `{"parameters":{"timeout":1.5},"inputs":[]}`,
	"timeout a string":          `{"parameters":{"timeout":"1"},"inputs":[]}`,
	"timeout huge":              `{"parameters":{"timeout":9223372036854775807},"inputs":[]}`,
	"binary_data_output string": `{"parameters":{"binary_data_output":"true"},"inputs":[]}`,
	"outputs a number":          `{"outputs":1,"inputs":[]}`,
	"output without a name":     `{"outputs":[{}],"inputs":[]}`,
	"binary size and data":      `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1],"parameters":{"binary_data_size":4}}]}`,
	"binary size negative":      `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":-4}}]}`,
	"binary size a string":      `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":"4"}}]}`,
	"binary size a fraction":    `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4.0}}]}`,
	"empty":                     "",
	"white space":               " \n",
	"text":                      "hello",
	"cut off":                   `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1`,
	"trailing":                  one("[1]", "FP32", "[1]") + "x",
	"two bodies":                one("[1]", "FP32", "[1]") + one("[1]", "FP32", "[1]"),
	"byte order mark":           "\ufeff" + one("[1]", "FP32", "[1]"),
}

func TestParseRefuses(t *testing.T) {
	for name, body := range badBodies {
		_, err := parse(body)
		if err == nil {
			t.Errorf("%s was accepted", name)
			continue
		}
		if e := explain(err); e.status != http.StatusBadRequest || len(e.msg) > 400 {
			t.Errorf("%s: status %d, %d bytes of text %.100s", name, e.status, len(e.msg), e.msg)
		}
	}
	for _, p := range []string{"shared_memory_region", "classification"} {
		_, err := parse(`{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1],"parameters":{"` + p + `":1}}]}`)
		if err == nil || explain(err).status != http.StatusNotImplemented {
			t.Errorf("parameter %s: %v, want 501", p, err)
		}
	}
}

// A shape far larger than the body must not be allocated.
func TestParseAllocatesByBody(t *testing.T) {
	body := []byte(one("[100000000]", "FP64", "[1,2]"))
	n := testing.AllocsPerRun(10, func() {
		a := &arena{}
		_ = parseInfer(body, &inferRequest{}, a)
		if len(a.words) > 4096 {
			t.Fatalf("%d words were allocated", len(a.words))
		}
	})
	if n > 50 {
		t.Errorf("%v allocations", n)
	}
}

// Random requests against encoding/json as the reference.
func TestParseAgainstEncodingJSON(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		dims := make([]int64, rng.IntN(4))
		n := int64(1)
		for i := range dims {
			dims[i] = int64(1 + rng.IntN(4))
			n *= dims[i]
		}
		flat := make([]float32, n)
		for i := range flat {
			flat[i] = math.Float32frombits(rng.Uint32())
			if f := float64(flat[i]); math.IsNaN(f) || math.IsInf(f, 0) {
				flat[i] = 0
			}
		}
		var data any = flat
		if rng.IntN(2) == 0 && len(dims) > 0 {
			data = nest(flat, dims)
		}
		body, err := json.Marshal(map[string]any{"inputs": []any{map[string]any{"name": "x", "shape": dims, "datatype": "FP32", "data": data}}})
		if err != nil {
			t.Fatal(err)
		}
		r, err := parse(string(body))
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		if got := tensor.View[float32](&r.inputs[0].tensor); !slices.Equal(got, flat) {
			t.Fatalf("%s: %v", body, got)
		}
	}
}

func nest(flat []float32, dims []int64) any {
	if len(dims) == 1 {
		return flat
	}
	step := len(flat) / int(dims[0])
	var out []any
	for i := range int(dims[0]) {
		out = append(out, nest(flat[i*step:(i+1)*step], dims[1:]))
	}
	return out
}

// FuzzParseInfer: no panic, and what is accepted is a consistent request that
// encoding/json reads the same way.
func FuzzParseInfer(f *testing.F) {
	for _, b := range []string{echoBody, one("[2,2]", "FP32", "[[1,2],[3,4]]"), one("[1]", "BYTES", `["\u00e9"]`), one("[0]", "UINT64", "[]"),
		`{"parameters":{"binary_data_output":true,"timeout":5},"inputs":[{"name":"x","shape":[1],"datatype":"FP16","parameters":{"binary_data_size":2}}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}`} {
		f.Add([]byte(b))
	}
	for name, b := range badBodies {
		if len(b) < 300 && name != "" {
			f.Add([]byte(b))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &inferRequest{}
		if parseInfer(b, r, &arena{}) != nil {
			return
		}
		if !json.Valid(b) {
			t.Fatalf("%q is no JSON and was accepted", b)
		}
		for i := range r.inputs {
			in := &r.inputs[i]
			if in.binary >= 0 {
				continue
			}
			if err := in.tensor.Check(); err != nil {
				t.Fatalf("%q: inconsistent tensor: %v", b, err)
			}
			if _, err := appendData(nil, "x", &in.tensor); err != nil {
				t.Fatalf("%q: cannot be written back: %v", b, err)
			}
		}
	})
}

func TestHeaderLength(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "12": 12, "999999999999999999": 999999999999999999} {
		if n, ok := parseHeaderLength(s); !ok || n != want {
			t.Errorf("%q: %d %v", s, n, ok)
		}
	}
	for _, s := range []string{"", "-1", "+1", " 1", "1 ", "1.0", "0x1", "1e3", "１", "9999999999999999999", "1,2", strings.Repeat("0", 1000)} {
		if n, ok := parseHeaderLength(s); ok {
			t.Errorf("%q was read as %d", s, n)
		}
	}
}

func FuzzHeaderLength(f *testing.F) {
	for _, s := range []string{"0", "1", "-1", "18446744073709551616", "1 ", "\t1", "1_0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, ok := parseHeaderLength(s)
		if ok && (n < 0 || strings.Trim(s, "0123456789") != "") {
			t.Fatalf("%q was read as %d", s, n)
		}
	})
}

// FuzzBinary: no panic; accepted tensors are consistent and BYTES survive a
// round trip.
func FuzzBinary(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 'a', 0, 0, 0, 0}, int64(2), "BYTES")
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, int64(1), "BYTES")
	f.Add(make([]byte, 12), int64(3), "FP32")
	f.Add([]byte{0, 1, 2}, int64(3), "BOOL")
	f.Add([]byte{}, int64(math.MaxInt64), "BYTES")
	f.Fuzz(func(t *testing.T, b []byte, n int64, datatype string) {
		d := protocolType([]byte(datatype))
		if d == tensor.Undefined {
			return
		}
		r := &inferRequest{}
		in := r.input()
		in.name, in.dtype, in.binary = []byte("x"), d, int64(len(b))
		in.shape = append(in.shape, n)
		if attachBinary(r, b, &arena{}) != nil {
			return
		}
		if err := in.tensor.Check(); err != nil {
			t.Fatalf("inconsistent tensor: %v", err)
		}
		if got := binaryTensor(&in.tensor); !slices.Equal(got, b) {
			t.Fatalf("%x came back as %x", b, got)
		}
	})
}
