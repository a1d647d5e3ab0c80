package http

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/task"
	"github.com/fewbit/fewbit/internal/tensor"
)

// letters is a preparer whose tokens are the letters of a text.
type letters struct{ labels []string }

func (l letters) Text(texts []string) (engine.Feeds, error) {
	pairs := make([]TextPair, len(texts))
	for i, t := range texts {
		pairs[i].Text = t
	}
	feeds, _, err := l.Encode(pairs)
	return feeds, err
}
func (l letters) Labels() []string   { return l.labels }
func (letters) MaxTokens() int       { return 8 }
func (letters) Count(t TextPair) int { return len(t.Text) + len(t.Pair) }
func (letters) Tokenize(text string, _ bool) (ids []int64) {
	for _, c := range []byte(text) {
		ids = append(ids, int64(c))
	}
	return ids
}

func (l letters) Encode(texts []TextPair) (engine.Feeds, []int, error) {
	var ids [][]int64
	for _, t := range texts {
		all := l.Tokenize(t.Text+t.Pair, true)
		if n := len(all) - l.MaxTokens(); n > 0 && t.CutLeft {
			all = all[n:]
		}
		ids = append(ids, all[:min(len(all), l.MaxTokens())])
	}
	return l.Tokens(ids)
}

func (letters) Tokens(ids [][]int64) (engine.Feeds, []int, error) {
	width, lens := 0, []int{}
	for _, row := range ids {
		width = max(width, len(row))
		lens = append(lens, len(row))
	}
	var flat []int64
	for _, row := range ids {
		flat = append(append(flat, row...), make([]int64, width-len(row))...)
	}
	return engine.Feeds{"ids": tensor.From(flat, int64(len(ids)), int64(width))}, lens, nil
}

func (letters) Token(id int64) (string, bool) { return string(rune(id)), false }
func (letters) Pooling() string               { return "mean" }

func (letters) Embed(out engine.Feeds, lengths []int) ([][]float32, error) {
	return task.MeanPooling.Pool(out["tokens"], lengths)
}

// lettersModel gives each token the vector (id, 1, 0), and each text one score:
// its first token.
func lettersModel() fake.Model {
	return fake.Model{
		Spec: engine.IOSpec{
			Inputs: []engine.IO{{Name: "ids", Type: tensor.Int64, Dims: []int64{-1, -1}}},
			Outputs: []engine.IO{{Name: "tokens", Type: tensor.Float32, Dims: []int64{-1, -1, 3}}, {Name: "score", Type: tensor.Float32, Dims: []int64{-1, 1}},
				{Name: "logits", Type: tensor.Float32, Dims: []int64{-1, 2}}},
		},
		Run: func(in engine.Feeds) (engine.Feeds, error) {
			ids := in["ids"]
			var tokens, score, logits []float32
			for i, id := range tensor.View[int64](ids) {
				tokens = append(tokens, float32(id), 1, 0)
				if int64(i)%ids.Dims[1] == 0 {
					score = append(score, float32(id-'m'))
					logits = append(logits, 5, float32(id-'m')+5)
				}
			}
			return engine.Feeds{"tokens": tensor.From(tokens, ids.Dims[0], ids.Dims[1], 3), "score": tensor.From(score, ids.Dims[0], 1), "logits": tensor.From(logits, ids.Dims[0], 2)}, nil
		},
	}
}

func textsFixture(t *testing.T) *fixture {
	f := newFixture(t, map[string]fake.Model{"letters": lettersModel(), "echo": {Spec: echoSpec()}}, nil)
	f.models.prep["letters"] = letters{labels: []string{"low", "high"}}
	return f
}

// Who names no model uses the one that takes texts, and no other: whether a model is
// used decides whether it stays loaded.
func TestTextsWithoutModel(t *testing.T) {
	f := textsFixture(t)
	answerOf[any](t, f.call(t, "POST", "/embed", `{"inputs":"c"}`))
	if n := f.models.acquired; n != 1 {
		t.Errorf("%d models were acquired", n)
	}
	f.models.prep["echo"] = letters{}
	a := f.call(t, "POST", "/embed", `{"inputs":"c"}`)
	if a.status != 422 || !strings.Contains(string(a.body), "several models take texts (echo, letters, ...)") {
		t.Errorf("%d: %s", a.status, a.body)
	}
}

func answerOf[T any](t *testing.T, a answer) (v T) {
	t.Helper()
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
	return v
}

func TestOpenAIEmbeddings(t *testing.T) {
	f := textsFixture(t)
	type reply struct {
		Object, Model string
		Data          []struct {
			Index     int
			Embedding any
		}
		Usage struct {
			Prompt int `json:"prompt_tokens"`
		}
	}
	ans := answerOf[reply](t, f.call(t, "POST", "/v1/embeddings", `{"model":"letters","input":["ab","c"]}`))
	if ans.Object != "list" || ans.Model != "letters" || len(ans.Data) != 2 || ans.Usage.Prompt != 3 || ans.Data[1].Index != 1 {
		t.Errorf("%+v", ans)
	}
	// "c" is 99: (99, 1, 0) of length 1
	v := ans.Data[1].Embedding.([]any)
	norm := math.Hypot(99, 1)
	if len(v) != 3 || math.Abs(v[0].(float64)-99/norm) > 1e-6 || math.Abs(v[1].(float64)-1/norm) > 1e-6 {
		t.Errorf("embedding %v", v)
	}
	same := answerOf[reply](t, f.call(t, "POST", "/v1/embeddings", `{"model":"letters","input":[[99]],"encoding_format":"base64","dimensions":2,"user":"x"}`))
	raw, err := base64.StdEncoding.DecodeString(same.Data[0].Embedding.(string))
	if err != nil || len(raw) != 8 {
		t.Fatalf("%v, %v", same.Data[0].Embedding, err)
	}
	if got := math.Float32frombits(binary.LittleEndian.Uint32(raw)); math.Abs(float64(got)-99/norm) > 1e-6 {
		t.Errorf("first number %v", got)
	}
	for body, want := range map[string]int{
		`{"model":"letters"}`:                                                  400,
		`{"model":"letters","input":""}`:                                       400,
		`{"model":"letters","input":[]}`:                                       400,
		`{"model":"letters","input":{}}`:                                       400,
		`{"model":"letters","input":[[]]}`:                                     400,
		`{"model":"letters","input":[99,null]}`:                                400,
		`{"model":"letters","input":[[99,null]]}`:                              400,
		`{"model":"letters","input":"abcdefghi"}`:                              400, // 9 tokens, it takes 8
		`{"model":"letters","input":"a","dimensions":4}`:                       400,
		`{"model":"letters","input":"a","dimensions":0}`:                       400,
		`{"model":"letters","input":"a","encoding_format":"hex"}`:              400,
		`{"model":"nobody","input":"a"}`:                                       404,
		`{"model":"echo","input":"a"}`:                                         400,
		`{"model":"letters","input":["a"` + strings.Repeat(`,"a"`, 300) + `]}`: 400,
	} {
		a := f.call(t, "POST", "/v1/embeddings", body)
		var e struct {
			Error struct{ Message, Type string }
		}
		if err := json.Unmarshal(a.body, &e); err != nil || a.status != want || e.Error.Message == "" || e.Error.Type != "invalid_request_error" {
			t.Errorf("%.80s: %d %s, want %d in OpenAI's form", body, a.status, a.body, want)
		}
		if strings.Contains(e.Error.Message, "truncate") { // this API has no such field
			t.Errorf("%.80s: advice that cannot be taken: %s", body, e.Error.Message)
		}
	}
	f.models.balanced(t)
}

func TestTEIRoutes(t *testing.T) {
	f := textsFixture(t)
	vectors := answerOf[[][]float64](t, f.call(t, "POST", "/embed", `{"inputs":"c","normalize":false}`))
	if len(vectors) != 1 || vectors[0][0] != 99 || vectors[0][1] != 1 {
		t.Errorf("embed: %v", vectors)
	}
	if v := answerOf[[][]float64](t, f.call(t, "POST", "/embed?model=letters", `{"inputs":["abcdefghijkl"],"truncate":true}`)); len(v) != 1 {
		t.Errorf("embed, cut: %v", v)
	}
	one := answerOf[[]teiScore](t, f.call(t, "POST", "/predict", `{"inputs":"n"}`))
	if len(one) != 2 || one[0].Label != "high" || math.Abs(one[0].Score-1/(1+math.Exp(-1))) > 1e-6 {
		t.Errorf("predict: %v", one)
	}
	many := answerOf[[][]teiScore](t, f.call(t, "POST", "/predict", `{"inputs":[["a"],["z","b"]],"raw_scores":true}`))
	if len(many) != 2 || many[0][0].Label != "low" || many[1][0].Score != 'z'-'m'+5 {
		t.Errorf("predict: %v", many)
	}
	ranks := answerOf[[]teiRank](t, f.call(t, "POST", "/rerank", `{"query":"q","texts":["a","b"],"return_text":true}`))
	if len(ranks) != 2 || ranks[0].Index != 0 || ranks[0].Text != "a" || ranks[0].Score != 1/(1+math.Exp(-4)) {
		t.Errorf("rerank: %v", ranks)
	}
	if ids := answerOf[[][]teiToken](t, f.call(t, "POST", "/tokenize", `{"inputs":["ab"]}`)); len(ids) != 1 || len(ids[0]) != 2 || ids[0][1] != (teiToken{ID: 'b', Text: "b"}) {
		t.Errorf("tokenize: %v", ids)
	}
	if info := answerOf[teiInfo](t, f.call(t, "GET", "/info", nil)); info.ModelID != "letters" || info.MaxLength != 8 || info.Type["classifier"] == nil {
		t.Errorf("info: %+v", info)
	}
	// Of what is cut on the left the last 8 are left.
	if v := answerOf[[][]float64](t, f.call(t, "POST", "/embed", `{"inputs":"aaaacdefghij","truncate":true,"truncation_direction":"Left","normalize":false}`)); v[0][0] != ('c'+'d'+'e'+'f'+'g'+'h'+'i'+'j')/8.0 {
		t.Errorf("embed, cut on the left: %v", v)
	}
	if a := f.call(t, "GET", "/health", nil); a.status != 200 {
		t.Errorf("health: %d %s", a.status, a.body)
	}
	for _, c := range []struct {
		path, body string
		status     int
		kind       string
	}{
		{"/embed", `{"inputs":""}`, 400, "Empty"}, {"/embed", `{"inputs":[]}`, 400, "Empty"}, {"/embed", `{"inputs":[[]]}`, 400, "Empty"},
		{"/rerank", `{"query":"","texts":["a"]}`, 400, "Empty"}, {"/rerank", `{"query":"q","texts":[]}`, 400, "Empty"}, {"/predict", `{"inputs":[[]]}`, 400, "Empty"},
		{"/embed", `{"inputs":"abcdefghi"}`, 413, "Validation"}, {"/embed", `{"inputs":["a"` + strings.Repeat(`,"a"`, 300) + `]}`, 413, "Validation"},
		{"/embed", `{"inputs":"` + strings.Repeat("a", 1<<20) + `"}`, 413, "Validation"}, {"/rerank", `{"query":"abcdefghi","texts":["a"]}`, 413, "Validation"},
		{"/embed", `{"inputs":"a","truncation_direction":"up"}`, 422, "Validation"}, {"/embed", `{"inputs":{}}`, 422, "Validation"}, {"/embed", `{`, 422, "Validation"},
		{"/embed", `{"inputs":"a","colour":1}`, 422, "Validation"}, {"/predict", `{"inputs":[["a","b","c"]]}`, 422, "Validation"}, {"/tokenize", `{"inputs":[[1]]}`, 422, "Validation"},
		{"/embed?model=nobody", `{"inputs":"a"}`, 404, "Validation"},
		{"/embed?model=echo", `{"inputs":"a"}`, 424, "Backend"}, {"/predict", `{"inputs":"a","model":"echo"}`, 424, "Backend"},
	} {
		a := f.call(t, "POST", c.path, c.body)
		var e struct {
			Error string
			Type  string `json:"error_type"`
		}
		if err := json.Unmarshal(a.body, &e); err != nil || a.status != c.status || e.Type != c.kind || e.Error == "" {
			t.Errorf("%s %.60s: %d %.200s, want %d %s in TEI's form", c.path, c.body, a.status, a.body, c.status, c.kind)
		}
	}
	f.models.balanced(t)
}
