package http

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/tensor"
)

// benchModel takes 3x128 token ids and answers 384 floats, like a sentence
// encoder, in no time.
func benchModel() (fake.Model, engine.Feeds) {
	names := []string{"input_ids", "attention_mask", "token_type_ids"}
	m := fake.Model{Spec: engine.IOSpec{Outputs: []engine.IO{{Name: "embedding", Type: tensor.Float32, Dims: []int64{-1, 384}}}}}
	feeds := engine.Feeds{}
	out := make([]float32, 384)
	for i := range out {
		out[i] = rand.Float32()*2 - 1
	}
	for _, n := range names {
		m.Spec.Inputs = append(m.Spec.Inputs, engine.IO{Name: n, Type: tensor.Int64, Dims: []int64{-1, -1}})
		ids := make([]int64, 128)
		for i := range ids {
			ids[i] = rand.Int64N(30000)
		}
		feeds[n] = tensor.From(ids, 1, 128)
	}
	answer := engine.Feeds{"embedding": tensor.From(out, 1, 384)}
	m.Run = func(engine.Feeds) (engine.Feeds, error) { return answer, nil }
	return m, feeds
}

// BenchmarkOverhead reports what a request over loopback at concurrency 1
// costs beyond the same session called in process: p50 in microseconds. The
// two are measured in turns, so that a busy machine slows both.
func BenchmarkOverhead(b *testing.B) {
	model, feeds := benchModel()
	f := newFixture(b, map[string]fake.Model{"m": model}, nil)
	session := f.models.sessions["m"]
	var js, bin bytes.Buffer
	var tail []byte
	js.WriteString(`{"inputs":[`)
	bin.WriteString(`{"parameters":{"binary_data_output":true},"inputs":[`)
	for i, io := range model.Spec.Inputs {
		if i > 0 {
			js.WriteByte(',')
			bin.WriteByte(',')
		}
		t := feeds[io.Name]
		fmt.Fprintf(&js, `{"name":%q,"shape":[1,128],"datatype":"INT64","data":%s}`, io.Name, strings.ReplaceAll(fmt.Sprint(tensor.View[int64](t)), " ", ","))
		fmt.Fprintf(&bin, `{"name":%q,"shape":[1,128],"datatype":"INT64","parameters":{"binary_data_size":1024}}`, io.Name)
		tail = append(tail, t.Data...)
	}
	js.WriteString("]}")
	bin.WriteString("]}")
	length := fmt.Sprint(bin.Len())
	bin.Write(tail)
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	for _, c := range []struct {
		name string
		body []byte
		head string
	}{{"json", js.Bytes(), ""}, {"binary", bin.Bytes(), length}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			over, in := make([]time.Duration, 0, b.N), make([]time.Duration, 0, b.N)
			for b.Loop() {
				start := time.Now()
				res, _, err := session.Run(context.Background(), feeds, nil)
				if err != nil {
					b.Fatal(err)
				}
				res.Close()
				in = append(in, time.Since(start))

				start = time.Now()
				req, _ := http.NewRequest("POST", f.url+"/v2/models/m/infer", bytes.NewReader(c.body))
				if c.head != "" {
					req.Header.Set(headerLength, c.head)
				}
				r, err := client.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, r.Body)
				r.Body.Close()
				if r.StatusCode != 200 {
					b.Fatal(r.Status)
				}
				over = append(over, time.Since(start))
			}
			slices.Sort(over)
			slices.Sort(in)
			p50, base := over[len(over)/2], in[len(in)/2]
			b.ReportMetric(float64((p50-base).Nanoseconds())/1e3, "overhead-p50-us")
			b.ReportMetric(float64(over[len(over)*99/100].Nanoseconds())/1e3, "p99-us")
		})
	}
}

func BenchmarkParseFloats(b *testing.B) {
	const n = 3 * 224 * 224
	body := []byte(`{"inputs":[{"name":"x","shape":[1,3,224,224],"datatype":"FP32","data":[`)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range n {
		if i > 0 {
			body = append(body, ',')
		}
		body = fmt.Appendf(body, "%g", float32(rng.NormFloat64()))
	}
	body = append(body, "]}]}"...)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	r, a := &inferRequest{}, &arena{}
	for b.Loop() {
		r.reset()
		a.used = 0
		if err := parseInfer(body, r, a); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteFloats(b *testing.B) {
	v := make([]float32, 3*224*224)
	for i := range v {
		v[i] = float32(rand.NormFloat64())
	}
	t := tensor.From(v, int64(len(v)))
	buf := make([]byte, 0, 4<<20)
	for b.Loop() {
		if _, err := appendData(buf, "x", t); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkEncodingJSON is the peer of BenchmarkParseFloats.
func BenchmarkEncodingJSON(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	v := make([]float32, 3*224*224)
	for i := range v {
		v[i] = float32(rng.NormFloat64())
	}
	body, err := json.Marshal(v)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		var out []float32
		if err := json.Unmarshal(body, &out); err != nil {
			b.Fatal(err)
		}
	}
}
