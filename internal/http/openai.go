package http

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/task"
)

type (
	embeddingsRequest struct {
		Model      string          `json:"model"`
		Input      json.RawMessage `json:"input" doc:"a text, a list of texts, a list of token ids, or a list of such lists"`
		Encoding   string          `json:"encoding_format,omitempty" doc:"float or base64 (32-bit little-endian floats); default float"`
		Dimensions *int            `json:"dimensions,omitempty" doc:"keeps the first so many dimensions and normalizes again"`
		User       string          `json:"user,omitempty" doc:"not used"`
	}
	embeddingsAnswer struct {
		Object string          `json:"object" doc:"list"`
		Model  string          `json:"model"`
		Data   []embeddingItem `json:"data" doc:"one per input, in order"`
		Usage  tokenUsage      `json:"usage"`
	}
	embeddingItem struct {
		Object    string `json:"object" doc:"embedding"`
		Index     int    `json:"index"`
		Embedding any    `json:"embedding" doc:"of length 1; numbers, or base64"`
	}
	tokenUsage struct {
		Prompt int `json:"prompt_tokens"`
		Total  int `json:"total_tokens"`
	}
)

// embeddings answers POST /v1/embeddings as OpenAI's API does.
func (s *Server) embeddings(c *gin.Context) error {
	var req embeddingsRequest
	if err := s.decode(c, &req, false); err != nil {
		return err
	}
	if req.Encoding != "" && req.Encoding != "float" && req.Encoding != "base64" {
		return badf("field \"encoding_format\": expected \"float\" or \"base64\", got %s", clip([]byte(req.Encoding)))
	}
	dimensions := 0
	if req.Dimensions != nil {
		if dimensions = *req.Dimensions; dimensions < 1 {
			return badf("field \"dimensions\" is %d, expected 1 or more", dimensions)
		}
	}
	texts, ids, err := readInput("input", req.Input)
	if err != nil {
		return err
	}
	lease, prep, err := s.textModel(c.Request.Context(), req.Model, "")
	if err != nil {
		return err
	}
	defer lease.Release()
	encode := func() (engine.Feeds, []int, error) {
		if ids != nil {
			return prep.Tokens(ids)
		}
		if err := tooLong(prep, texts, ""); err != nil {
			return nil, nil, err
		}
		return prep.Encode(texts)
	}
	return s.runTexts(c, lease, encode, func(out engine.Feeds, lengths []int) error {
		vectors, err := vectorsOf(prep, out, lengths, true, dimensions)
		if err != nil {
			return err
		}
		ans := embeddingsAnswer{Object: "list", Model: lease.Name(), Data: make([]embeddingItem, len(vectors))}
		for i, v := range vectors {
			ans.Data[i] = embeddingItem{"embedding", i, any(v)}
			if req.Encoding == "base64" {
				ans.Data[i].Embedding = base64Floats(v)
			}
			ans.Usage.Prompt += lengths[i]
		}
		ans.Usage.Total = ans.Usage.Prompt
		return s.reply(c, http.StatusOK, ans)
	})
}

// vectorsOf makes the vectors of a run: cut to dimensions (0: all), of length 1
// where asked.
func vectorsOf(prep Texts, out engine.Feeds, lengths []int, normalize bool, dimensions int) ([][]float32, error) {
	vectors, err := prep.Embed(out, lengths)
	if err != nil {
		return nil, err
	}
	for i, v := range vectors {
		if dimensions > len(v) {
			return nil, badf("field \"dimensions\" is %d, the model's embeddings have %d", dimensions, len(v))
		}
		if dimensions > 0 {
			v = v[:dimensions]
		}
		if normalize {
			task.Normalize(v)
		}
		for _, x := range v {
			if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) {
				return nil, fmt.Errorf("%w: its embedding is not finite", engine.ErrModel)
			}
		}
		vectors[i] = v
	}
	return vectors, nil
}

func base64Floats(v []float32) string {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return base64.StdEncoding.EncodeToString(b)
}

// readInput reads what embedding routes take: a text, texts, token ids, or lists
// of token ids. One of the results is not nil.
func readInput(field string, raw json.RawMessage) ([]TextPair, [][]int64, error) {
	var one string
	var many []string
	var ids []int64
	var lists [][]int64
	switch {
	case len(raw) == 0:
		return nil, nil, badf("field %q is missing", field)
	case json.Unmarshal(raw, &one) == nil:
		many = []string{one}
	case json.Unmarshal(raw, &many) == nil:
	case json.Unmarshal(raw, &ids) == nil:
		lists = [][]int64{ids}
	case json.Unmarshal(raw, &lists) == nil:
	default:
		return nil, nil, badf("field %q: expected a text, a list of texts, a list of token ids, or a list of such lists", field)
	}
	if lists != nil {
		if bytes.Contains(raw, []byte("null")) { // it would be token 0
			return nil, nil, badf("field %q: null is no token id", field)
		}
		if len(lists) > MaxTexts {
			return nil, nil, limitf("%d inputs, at most %d are allowed in one request", len(lists), MaxTexts)
		}
		for i, l := range lists {
			if len(l) == 0 {
				return nil, nil, emptyf("input %d has no token", i)
			}
		}
		return nil, lists, nil
	}
	if err := checkTexts(len(many), func(i int) string { return many[i] }); err != nil {
		return nil, nil, err
	}
	texts := make([]TextPair, len(many))
	for i, t := range many {
		texts[i].Text = t
	}
	return texts, nil, nil
}

type (
	openAIFailure struct {
		Error openAIProblem `json:"error"`
	}
	openAIProblem struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    *string `json:"code"`
	}
)

// openAIError words errors as OpenAI's clients read them.
func (s *Server) openAIError(h func(*gin.Context) error) func(*gin.Context) error {
	return s.worded(h, func(e *httpError, _ error) any {
		kind, code := "invalid_request_error", (*string)(nil)
		switch {
		case e.status >= http.StatusInternalServerError:
			kind = "server_error"
		case e.status == http.StatusNotFound:
			code = new("model_not_found")
		}
		return openAIFailure{openAIProblem{Message: e.msg, Type: kind, Code: code}}
	})
}

// worded answers a handler's error in the form of another API.
func (s *Server) worded(h func(*gin.Context) error, form func(*httpError, error) any) func(*gin.Context) error {
	return func(c *gin.Context) error {
		err := h(c)
		if err == nil || c.Writer.Written() {
			return err
		}
		e := *explain(err)
		b, merr := json.Marshal(form(&e, err))
		if merr != nil {
			return err
		}
		return &formed{err, e.status, append(b, '\n')}
	}
}

// formed is an error with the body that says it.
type formed struct {
	error
	status int
	body   []byte
}

func (f *formed) Unwrap() error { return f.error }
