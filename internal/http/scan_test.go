package http

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

func TestParseFloatEqualsStrconv(t *testing.T) {
	for _, s := range []string{"0", "-0", "1", "-1", "0.1", "0.3", "1e10", "1E-5", "123456789", "16777217", "16777219", "33554435",
		"3.4028234663852886e38", "3.4028235677973366e38", "3.4028236e38", "1e39", "1e400", "-1e400", "1e-45", "7e-46", "1.1754943508222875e-38",
		"1.1754942e-38", "9007199254740993", "18446744073709551616", "99999999999999999999999", "0.000000000000000000000000000001",
		"1.00000005960464477539062", "1.00000005960464477539063", "1.00000005960464477539061", "8388608.5", "8388609.5", "1e22", "1e23", "1e-22", "2.5e-320",
		"1e99999999999999999999", "1e-99999999999999999999", "0e999999999999"} {
		checkFloat(t, s)
	}
}

// checkFloat compares parseFloat with strconv and the grammar with
// encoding/json.
func checkFloat(t *testing.T, s string) {
	t.Helper()
	number := json.Valid([]byte(s)) && strings.TrimLeft(s, "-0123456789") != s && !strings.ContainsAny(s, " \t\r\n")
	for _, bits := range []int{32, 64} {
		v, next, ok := parseFloat([]byte(s), 0, bits)
		want, err := strconv.ParseFloat(s, bits)
		if whole := ok && next == len(s); whole != (number && err == nil) {
			t.Fatalf("%q as FP%d: read %v, want %v (%v)", s, bits, whole, number && err == nil, err)
		} else if whole && math.Float64bits(v) != math.Float64bits(want) {
			t.Fatalf("%q as FP%d: %v, strconv has %v", s, bits, v, want)
		}
	}
}

func FuzzParseFloat(f *testing.F) {
	for _, s := range []string{"0", "-1.5e-3", "16777217", "1.00000005960464477539063", "1e39", "01", "1.", ".5", "-", "1e", "+1", "0x1p3", "Inf", "NaN", "1_0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { checkFloat(t, s) })
}

// FuzzScanner compares the scanner's idea of JSON with encoding/json's.
func FuzzScanner(f *testing.F) {
	for _, s := range []string{`{}`, `[1,{"a":[true,null]},"\u00e9\ud83d\ude00"]`, `[1,]`, `{"a":1,}`, `{"a"}`, `"\ud800"`, "\"\x01\"", `nul`, `[[[]]]`, `{"a":{}}`, "\"\xff\"", `[}`, `{]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &scanner{b: b}
		err := s.skip()
		if err == nil {
			err = s.end()
		}
		valid := json.Valid(b)
		if err == nil && !valid {
			t.Fatalf("%q was accepted", b)
		}
		// Stricter than encoding/json only in depth, UTF-8 and lone surrogates.
		if err != nil && valid && utf8.Valid(b) && !strings.Contains(string(b), `\u`) && !strings.Contains(err.Error(), "nested deeper") {
			t.Fatalf("%q was refused: %v", b, err)
		}
		var v string
		str := &scanner{b: b}
		got, err := str.str()
		if err == nil && str.end() == nil {
			if json.Unmarshal(b, &v) != nil || v != string(got) {
				t.Fatalf("string %q read as %q, encoding/json has %q", b, got, v)
			}
		}
		raw := &scanner{b: b}
		from, to, escapes, rawErr := raw.raw()
		if (rawErr == nil) != (err == nil) || err == nil && (raw.i != str.i || !escapes && string(b[from:to]) != string(got)) {
			t.Fatalf("string %q: %v as it lies, %v read", b, rawErr, err)
		}
		if err == nil && escapes {
			if text, err := io.ReadAll(iotest.OneByteReader(&unescaper{r: bufio.NewReader(bytes.NewReader(b[from:to]))})); err != nil || string(text) != string(got) {
				t.Fatalf("string %q unescaped is %q, %v; want %q", b, text, err, got)
			}
		}
	})
}

func TestDepth(t *testing.T) {
	for _, n := range []int{MaxJSONDepth, MaxJSONDepth + 1, 100_000} {
		for _, pair := range []string{"[]", "{}"} {
			open, shut := "[", "]"
			if pair == "{}" {
				open, shut = `{"a":`, "}"
			}
			s := &scanner{b: []byte(strings.Repeat(open, n) + "1" + strings.Repeat(shut, n))}
			if err := s.skip(); (err == nil) != (n <= MaxJSONDepth) {
				t.Errorf("%s nested %d deep: %v", pair, n, err)
			}
		}
	}
}

func TestDecodeStrict(t *testing.T) {
	type inner struct {
		A int `json:"a"`
	}
	type body struct {
		Name string   `json:"name"`
		In   *inner   `json:"in"`
		List []inner  `json:"list"`
		Tags []string `json:"tags"`
	}
	for _, c := range []struct{ in, err string }{
		{`{"name":"x","in":{"a":1},"list":[{"a":2}],"tags":["t"]}`, ""},
		{`{"in":null}`, ""},
		{`{"nam":"x"}`, `unknown field "nam", expected one of in, list, name, tags`},
		{`{"Name":"x"}`, `unknown field "Name"`},
		{`{"in":{"b":1}}`, `unknown field "in.b"`},
		{`{"list":[{"a":1},{"c":1}]}`, `unknown field "list.c"`},
		{`{"name":"x","name":"y"}`, `given twice`},
		{`{"name":1}`, `field "name": expected a string, got number`},
		{`{"in":{"a":1.5}}`, `expected an integer`},
		{`{"in":[]}`, `expected an object, got array`},
		{`[]`, `expected an object`},
		{`{} x`, `expected the end`},
		{"{\"name\":\"\xff\"}", `not UTF-8`},
		{strings.Repeat(`{"in":`, 1000), `unknown field "in.in"`},
		{`{"tags":` + strings.Repeat("[", 100_000), `nested deeper`},
	} {
		var v body
		err := decodeStrict([]byte(c.in), &v)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%.60s: %v, want %q", c.in, err, c.err)
		}
	}
}
