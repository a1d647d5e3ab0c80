package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/eval"
)

var (
	update   = flag.Bool("update", false, "rewrite testdata")
	pageFile = flag.String("page", "", "also write the sample's page to this file, to look at it")
)

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (run with -update to write it)", err)
	}
	if !bytes.Equal(want, got) {
		t.Errorf("%s differs; run with -update if this is meant:\n%s", file, got)
	}
}

func text(t *testing.T, r Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := Text(&b, r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func htmlPage(t *testing.T, r Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := HTML(&b, r); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, b.Bytes())
	return b.String()
}

func TestTextGolden(t *testing.T) {
	refused := sample()
	refused.Evaluation.Latency.Ratios[1] = eval.Ratio{Median: .71, Lo: .69, Hi: .74, Coverage: .95, N: 200}
	refused.Evaluation.BrokenSamples = 3
	refused.Warnings = nil
	refused.Judge(false)
	forced := refused
	forced.Judge(true)
	fidelity := sample()
	e := *fidelity.Evaluation
	near := eval.Proportion("nn", 191, 200)
	e.RefAccuracy, e.QuantAccuracy, e.Difference, e.Paired, e.Agreement, e.Latency, e.Neighbours = nil, nil, nil, nil, nil, nil, &near
	fidelity.Evaluation, fidelity.Operators = &e, nil
	for name, r := range map[string]Report{"accepted.txt": sample(), "refused.txt": refused, "forced.txt": forced, "fidelity.txt": fidelity, "empty.txt": {Model: Model{Name: "m.onnx"}}} {
		golden(t, name, []byte(text(t, r)))
	}
}

func TestTextIsAligned(t *testing.T) {
	lines := strings.Split(text(t, sample()), "\n")
	at := -1
	for _, l := range lines {
		if i := strings.Index(l, " ms  "); i >= 0 {
			if at >= 0 && i != at {
				t.Errorf("column moved: %q", l)
			}
			at = i
		}
	}
	if at < 0 {
		t.Fatal("no latency lines")
	}
}

func TestJSONRoundTrip(t *testing.T) {
	var a, b bytes.Buffer
	if err := WriteJSON(&a, sample()); err != nil {
		t.Fatal(err)
	}
	r, err := ReadJSON(bytes.NewReader(a.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteJSON(&b, *r); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("writing what was read gives other bytes")
	}
	if got := r.Operators[3].SQNR; got.Finite() {
		t.Errorf("unmeasured SQNR read back as %v, expected NaN", got)
	}
	if text(t, sample()) != text(t, *r) {
		t.Error("the text of the report read back differs")
	}
}

// TestSchema pins the names of the JSON form: they may be added to, and none
// may go or change its name within a version.
func TestSchema(t *testing.T) {
	var b strings.Builder
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(ty reflect.Type) {
		for ty.Kind() == reflect.Pointer || ty.Kind() == reflect.Slice {
			ty = ty.Elem()
		}
		if ty.Kind() != reflect.Struct || seen[ty] || ty.PkgPath() == "time" {
			return
		}
		seen[ty] = true
		fmt.Fprintln(&b, ty)
		for i := range ty.NumField() {
			f := ty.Field(i)
			tag := f.Tag.Get("json")
			if tag == "" {
				t.Errorf("%v.%s has no json tag", ty, f.Name)
			}
			fmt.Fprintf(&b, "  %s %v\n", tag, f.Type)
		}
		for i := range ty.NumField() {
			if ty.Field(i).Tag.Get("json") != "-" {
				walk(ty.Field(i).Type)
			}
		}
	}
	walk(reflect.TypeFor[Report]())
	golden(t, "schema.txt", []byte(b.String()))
}

func TestReadJSONRefuses(t *testing.T) {
	for _, s := range []string{"", "{", "[]", "{}", `{"schema":"fewbit.report/9"}`, `{"schema":"fewbit.report/1","tensors":[{"lo":"x"}]}`} {
		if _, err := ReadJSON(strings.NewReader(s)); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: got %v, expected ErrFormat", s, err)
		}
	}
}

func TestNum(t *testing.T) {
	for in, want := range map[Num]string{Num(math.Inf(1)): "null", Num(math.Inf(-1)): "null", 0: "0", -1.5: "-1.5", 1e300: "1e+300"} {
		if b, err := json.Marshal(in); err != nil || string(b) != want {
			t.Errorf("%v: got %s %v, expected %s", in, b, err, want)
		}
	}
	if b, err := json.Marshal(Num(math.NaN())); err != nil || string(b) != "null" {
		t.Errorf("NaN: got %s %v", b, err)
	}
}

func TestHTML(t *testing.T) {
	p := htmlPage(t, sample())
	if *pageFile != "" {
		if err := os.WriteFile(*pageFile, []byte(p), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{`id="quality"`, `id="latency"`, `id="sqnr"`, `id="float"`, `id="ranges"`, `id="tensors"`, `id="calibration"`, `id="passes"`, `id="facts"`, "✓ accepted",
		"target 50.0 ms", "both inputs are activations", "&#39;my texts.jsonl&#39;", "prefers-color-scheme: dark", Schema} {
		if !strings.Contains(p, want) {
			t.Errorf("page lacks %q", want)
		}
	}
	p = strings.Replace(p, "<dt>NaN, infinite</dt>", "", 1) // the one label
	for _, never := range []string{"NaN", "+Inf", "ZgotmplZ", "<no value>", "%!"} {
		if strings.Contains(p, never) {
			t.Errorf("page contains %q", never)
		}
	}
}

// TestHTMLIsSelfContained: nothing in the page may make a browser fetch or run
// anything.
func TestHTMLIsSelfContained(t *testing.T) {
	p := htmlPage(t, sample())
	if m := regexp.MustCompile(`(?i)<script|<link|<img|<iframe|<object|src=|href=|url\(|@import|https?:|\bon[a-z]+=`).FindString(p); m != "" {
		t.Errorf("page contains %q", m)
	}
}

func TestHTMLOfEmptyReport(t *testing.T) {
	p := htmlPage(t, Report{})
	for _, absent := range []string{`id="quality"`, `id="latency"`, `class="tiles"`, `class="warnings"`} {
		if strings.Contains(p, absent) {
			t.Errorf("empty report shows %s", absent)
		}
	}
}

// hostile is what a model file may name its tensors.
var hostile = []string{
	`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `'-alert(1)-'`, `</style><script>alert(1)</script>`, `</title></svg><b onclick=alert(1)>`,
	`{{.R}}`, "javascript:alert(1)", "a\x1b[2J\x1b]0;owned\x07b", "line\nbreak\r", "\u202egnp.exe", "\xff\xfe", "]]>", "&lt;script&gt;", strings.Repeat("x", 100_000),
}

// poison puts s into every string of v.
func poison(v reflect.Value, s string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			poison(v.Elem(), s)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && v.Type().PkgPath() != "time" {
				poison(v.Field(i), s)
			}
		}
	case reflect.Slice:
		if v.Len() == 0 && v.Type().Elem().Kind() == reflect.String {
			v.Set(reflect.ValueOf([]string{s, s}))
		}
		for i := range v.Len() {
			poison(v.Index(i), s)
		}
	case reflect.String:
		v.SetString(s)
	}
}

func TestHostileStrings(t *testing.T) {
	poisoned := func(s string) Report {
		r := sample()
		r.Operators, r.Tensors = r.Operators[:8], r.Tensors[:4]
		poison(reflect.ValueOf(&r).Elem(), s)
		return r
	}
	plain := tags(t, htmlPage(t, poisoned("harmless")))
	for _, s := range hostile {
		r := poisoned(s)
		p := htmlPage(t, r)
		for tag := range tags(t, p) {
			if !plain[tag] {
				t.Errorf("%.40q brought a tag into the page: %s", s, tag)
			}
		}
		if strings.Contains(p, "\x1b") || strings.Contains(p, "\u202e") {
			t.Errorf("%.40q: control characters reach the page", s)
		}
		if max := 2 << 20; len(p) > max {
			t.Errorf("%.40q makes a page of %d bytes", s, len(p))
		}
		out := text(t, r)
		if i := strings.IndexFunc(out, func(c rune) bool { return c != '\n' && (c < ' ' || c == 0x7f || c == '\u202e') }); i >= 0 {
			t.Errorf("%.40q: control character %q reaches the terminal", s, out[i])
		}
		if len(out) > 20_000 {
			t.Errorf("%.40q makes a text of %d bytes", s, len(out))
		}
	}
}

// tags returns every element with the names of its attributes.
func tags(t *testing.T, p string) map[string]bool {
	t.Helper()
	seen := map[string]bool{}
	d := decoder(p)
	for {
		tok, err := d.Token()
		if err == io.EOF {
			return seen
		}
		if err != nil {
			t.Fatal(err)
		}
		if el, ok := tok.(xml.StartElement); ok {
			s := el.Name.Local
			for _, a := range el.Attr {
				s += " " + a.Name.Local
			}
			seen[s] = true
		}
	}
}

func decoder(p string) *xml.Decoder {
	d := xml.NewDecoder(strings.NewReader(p))
	d.Strict = false
	d.AutoClose = []string{"meta"}
	d.Entity = xml.HTMLEntity
	return d
}

// wellFormed demands that every element is closed, in order.
func wellFormed(t *testing.T, p []byte) {
	t.Helper()
	// The strict decoder checks nesting; only meta is void in this page.
	s := regexp.MustCompile(`<meta [^>]*>`).ReplaceAllString(string(p), "")
	s = strings.Replace(s, "<!DOCTYPE html>", "", 1)
	d := xml.NewDecoder(strings.NewReader(s))
	d.Entity = xml.HTMLEntity
	for {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Fatalf("page is not well formed: %v", err)
		}
	}
}

// TestManyTensors: a model with thousands of operators gives a bounded page,
// and says what it left out.
func TestManyTensors(t *testing.T) {
	r := sample()
	for len(r.Tensors) < 20_000 {
		r.Tensors = append(r.Tensors, r.Tensors[:36]...)
		r.Operators = append(r.Operators, r.Operators[:42]...)
	}
	for range 500 {
		r.Warnings = append(r.Warnings, fmt.Sprint("warning ", len(r.Warnings)))
	}
	p := htmlPage(t, r)
	if len(p) > 1<<20 {
		t.Errorf("page of %d bytes", len(p))
	}
	if want := fmt.Sprintf("and %d more", len(r.Tensors)-htmlRows); !strings.Contains(p, want) {
		t.Errorf("page lacks %q", want)
	}
	if n := strings.Count(text(t, r), "\n"); n > 60 {
		t.Errorf("text of %d lines", n)
	}
}

// TestExtremeNumbers: no number breaks a plot.
func TestExtremeNumbers(t *testing.T) {
	for _, v := range []float64{0, -1, 1e-300, 1e300, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64} {
		r := sample()
		for i := range r.Operators {
			r.Operators[i].SQNR = Num(v)
		}
		for i := range r.Tensors {
			c := &r.Tensors[i]
			c.Lo, c.Hi, c.Scale, c.Error, c.Histogram.Hi = Num(v), Num(-v), Num(v), Num(v), Num(v)
		}
		r.Gate.SLOMS, r.Calibration.Clipped = v, Num(v)
		for i := range r.Evaluation.Latency.Candidates {
			c := &r.Evaluation.Latency.Candidates[i]
			c.P50MS, c.P99MS = v, v
			for j := range c.CurveMS {
				c.CurveMS[j] = v
			}
		}
		r.Evaluation.RefAccuracy.Lo, r.Evaluation.QuantAccuracy.Hi = v, v
		if p := htmlPage(t, r); len(p) > 2<<20 {
			t.Errorf("%g: page of %d bytes", v, len(p))
		}
		text(t, r)
	}
}

func TestJudge(t *testing.T) {
	r := sample()
	if r.Verdict.Status != Accepted {
		t.Fatalf("sample is %v", r.Verdict)
	}
	zero := 0.0
	r.Gate.MaxLoss = &zero
	if v := r.Judge(false); v.Status != Refused || len(v.Reasons) != 1 {
		t.Errorf("got %v, expected a refusal for accuracy", v)
	}
	if v := r.Judge(true); v.Status != Forced || len(v.Reasons) != 1 {
		t.Errorf("got %v, expected a forced acceptance", v)
	}
	r.Evaluation = nil
	if v := r.Judge(true); v.Status != Unjudged {
		t.Errorf("got %v without an evaluation", v)
	}
}

func TestFormats(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Bytes(0), "0 B"}, {Bytes(999), "999 B"}, {Bytes(1000), "1.00 kB"}, {Bytes(90_387_606), "90.4 MB"}, {Bytes(999_999), "1.00 MB"}, {Bytes(438_000_000_000_000_000), "438000 TB"},
		{countText(999), "999"}, {countText(22_565_381), "22.6 M"}, {sig(0, 3), "0"}, {sig(.0255, 4), "0.02550"}, {sig(-5.7, 4), "-5.700"}, {sig(3.4e38, 3), "3.4e+38"}, {sig(math.NaN(), 3), "–"}, {sig(123456, 3), "123456"},
		{points(-.003), "−0.30"}, {points(.00001), "0.00"}, {points(.05), "+5.00"}, {msText(41.23), "41.2 ms"}, {msText(.123), "0.12 ms"}, {secText(75), "1 min 15 s"}, {secText(.021), "21 ms"},
		{cosineText(.99964), "0.99964"}, {cosineText(.999964), "0.999964"}, {cosineText(1), "1.0000"}, {shorten("abcdefghij", 5), "ab…ij"[:2] + "…ij"}, {shorten("abc", 3), "abc"},
		{clean("a\x1b[2Jb\u202ec"), "a\ufffd[2Jb\ufffdc"}, {change(90, 30, "smaller", "larger"), "3.00× smaller"}, {change(30, 90, "smaller", "larger"), "3.00× larger"}, {change(0, 1, "", ""), ""},
	} {
		if c.got != c.want {
			t.Errorf("got %q, expected %q", c.got, c.want)
		}
	}
}

func TestRebinKeepsCounts(t *testing.T) {
	for n := range 300 {
		c := make([]int64, n)
		var want, got int64
		for i := range c {
			c[i] = int64(i * i)
			want += c[i]
		}
		r := rebin(c, maxBars)
		for _, v := range r {
			got += v
		}
		if got != want || len(r) > maxBars {
			t.Fatalf("%d bins: sum %d in %d bins, expected %d in at most %d", n, got, len(r), want, maxBars)
		}
	}
}
