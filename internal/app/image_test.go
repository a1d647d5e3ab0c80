package app

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"mime/multipart"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/rollout/capture"
	"github.com/fewbit/fewbit/internal/tensor"
)

// pixelModel scores each value of an RGB image of 8x8: label cyx is the value of
// channel c in row y, column x. It scales the values up, so that softmax is sharp.
func pixelModel(t testing.TB, files map[string]string) []byte {
	t.Helper()
	m := imageGraph()
	g := m.Graph
	g.Nodes[0] = graph.NewNode("", "Flatten", "/values", []string{"pixels"}, []string{"values"})
	g.Nodes = append(g.Nodes, graph.NewNode("", "Mul", "/flat", []string{"values", "gain"}, []string{"flat"}))
	g.SetInit("gain", tensor.From([]float32{20}, 1))
	var labels strings.Builder
	for c := range 3 {
		for y := range 8 {
			for x := range 8 {
				fmt.Fprintf(&labels, "%c%d%d\n", "rgb"[c], y, x)
			}
		}
	}
	all := map[string][]byte{"model.onnx": onnxBytes(t, m), "labels.txt": []byte(labels.String())}
	for name, text := range files {
		all[name] = []byte(text)
	}
	return zipOf(t, all)
}

// dot is a black image with one bright pixel.
func dot(w, h, x, y int, c color.Color) image.Image {
	im := image.NewNRGBA(image.Rect(0, 0, w, h))
	for i := range im.Pix {
		im.Pix[i] = byte(i%4/3) * 255
	}
	im.Set(x, y, c)
	return im
}

func pngOf(t testing.TB, im image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, im); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func form(t testing.TB, fields map[string]string, files ...[]byte) (body []byte, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for k, v := range fields {
		if err := w.WriteField(k, v); err != nil {
			t.Fatal(err)
		}
	}
	for i, f := range files {
		p, err := w.CreateFormFile("image", fmt.Sprintf("%d.png", i))
		if err == nil {
			_, err = p.Write(f)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), w.FormDataContentType()
}

// hugePNG promises 30000x30000 pixels in a few bytes.
func hugePNG() []byte {
	b := []byte("\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR\x00\x00\x75\x30\x00\x00\x75\x30\x08\x02\x00\x00\x00")
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[12:]))
}

func TestClassifyImages(t *testing.T) {
	t.Parallel()
	key := keyFile(t, 'i')
	s := start(t, "", func(c *Config) { c.CaptureKey = key })
	s.do("PUT", "/models/px", pixelModel(t, nil), "Content-Type", "application/zip").into(t, 201, nil)
	s.do("PUT", "/models/px/capture", nil).into(t, 200, nil)
	red := pngOf(t, dot(8, 8, 3, 5, color.NRGBA{255, 0, 0, 255}))
	blue := pngOf(t, dot(8, 8, 7, 0, color.NRGBA{0, 0, 255, 255}))
	b64 := base64.StdEncoding.EncodeToString
	mixed, mixedType := form(t, map[string]string{"model": "px"}, red, blue)
	inQuery, queryType := form(t, nil, blue)
	for name, c := range map[string]struct {
		path        string
		body        any
		contentType string
		want        string
	}{
		"base64":                   {"/v1/classify", map[string]any{"model": "px", "image": b64(red)}, "application/json", "r53"},
		"data URL":                 {"/v1/classify", map[string]any{"model": "px", "images": []string{"data:image/png;base64," + b64(blue), b64(red)}, "top": 3}, "application/json", "b07 r53"},
		"raw":                      {"/v1/classify?model=px", red, "image/png", "r53"},
		"version":                  {"/v1/classify?model=px&version=1", blue, "image/png", "b07"},
		"form":                     {"/v1/classify", mixed, mixedType, "r53 b07"},
		"form, model in the query": {"/v1/classify?model=px", inQuery, queryType, "b07"},
	} {
		var out struct {
			Model   string `json:"model_name"`
			Results []struct {
				Label  string
				Score  float64
				Scores []json.RawMessage
			}
		}
		s.do("POST", c.path, c.body, "Content-Type", c.contentType).into(t, 200, &out)
		var got []string
		for _, r := range out.Results {
			got = append(got, r.Label)
			if r.Score < 0.9 || len(r.Scores) != 192 && name != "data URL" || name == "data URL" && len(r.Scores) != 3 {
				t.Errorf("%s: score %v, %d labels", name, r.Score, len(r.Scores))
			}
		}
		if strings.Join(got, " ") != c.want || out.Model != "px" {
			t.Errorf("%s: %v, want %s", name, got, c.want)
		}
	}
	s.captured("px", func(st capture.Status) bool { return st.Routes["classify"] == 8 && st.Samples == 8 })

	// Turned upright, resized and normalised as the settings beside the model say.
	s.do("PUT", "/models/cfg", pixelModel(t, map[string]string{"preprocessor_config.json": `{"do_resize":true,"size":{"height":8,"width":8},"resample":0,"do_normalize":true,
		"image_mean":[0.9,0.5,0.5],"image_std":[0.1,0.5,0.5]}`}), "Content-Type", "application/zip").into(t, 201, nil)
	var b bytes.Buffer
	if err := jpeg.Encode(&b, dot(16, 16, 0, 0, color.White), &jpeg.Options{Quality: 100}); err != nil {
		t.Fatal(err)
	}
	// EXIF: rotate by 180 degrees.
	exif := "Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x03\x00\x00\x00\x00\x00\x00"
	turned := append([]byte("\xff\xd8\xff\xe1"), binary.BigEndian.AppendUint16(nil, uint16(len(exif)+2))...)
	turned = append(append(turned, exif...), b.Bytes()[2:]...)
	var out struct{ Results []struct{ Label string } }
	s.do("POST", "/v1/classify?model=cfg", turned, "Content-Type", "image/jpeg").into(t, 200, &out)
	if l := out.Results[0].Label; l != "r77" && l != "g77" && l != "b77" {
		t.Errorf("the pixel of the first corner, turned by 180 degrees, is %s", l)
	}

	text := textModel(t)
	s.do("PUT", "/models/text", text, "Content-Type", "application/zip").into(t, 201, nil)
	s.do("PUT", "/models/mlp", mlp(t)).into(t, 201, nil)
	noFile, noFileType := form(t, map[string]string{"model": "px"})
	oddField, oddType := form(t, map[string]string{"model": "px", "modul": "px"}, red)
	many := make([]string, 33)
	for i := range many {
		many[i] = b64(red)
	}
	for name, c := range map[string]struct {
		path, contentType string
		body              any
		status            int
		words             string
	}{
		"no image":             {"/v1/classify?model=px", "image/png", []byte("hello"), 400, "neither JPEG, PNG nor WebP"},
		"empty":                {"/v1/classify?model=px", "image/png", []byte{}, 400, "0 bytes"},
		"cut off":              {"/v1/classify?model=px", "image/png", red[:len(red)/2], 400, "damaged PNG"},
		"bomb":                 {"/v1/classify?model=px", "image/png", hugePNG(), 413, "30000x30000"},
		"gif":                  {"/v1/classify?model=px", "image/gif", []byte("GIF89a"), 415, "image/gif"},
		"no model":             {"/v1/classify", "image/png", red, 400, "model"},
		"not base64":           {"/v1/classify", "application/json", map[string]any{"model": "px", "image": "***"}, 400, "image 0 is not base64"},
		"no base64 in the URL": {"/v1/classify", "application/json", map[string]any{"model": "px", "image": "data:image/png,abc"}, 400, "data: URL"},
		"both":                 {"/v1/classify", "application/json", map[string]any{"model": "px", "image": b64(red), "text": "x"}, 400, "not both"},
		"the second of two":    {"/v1/classify", "application/json", map[string]any{"model": "px", "images": []string{b64(red), b64(red[:len(red)/2])}}, 400, "image 1: bad image: a damaged PNG"},
		"none":                 {"/v1/classify", "application/json", map[string]any{"model": "px", "images": []string{}}, 400, "images"},
		"too many":             {"/v1/classify", "application/json", map[string]any{"model": "px", "images": many}, 400, "at most 32"},
		"text to images":       {"/v1/classify", "application/json", map[string]any{"model": "px", "text": "x"}, 400, "takes no text"},
		"image to text":        {"/v1/classify?model=text", "image/png", red, 400, "takes no images"},
		"image to numbers":     {"/v1/classify?model=mlp", "image/png", red, 400, "takes no images"},
		"form without a file":  {"/v1/classify", noFileType, noFile, 400, "no image"},
		"unknown field":        {"/v1/classify", oddType, oddField, 400, "modul"},
		"no boundary":          {"/v1/classify", "multipart/form-data", mixed, 400, "boundary"},
		"form cut off":         {"/v1/classify", mixedType, mixed[:len(mixed)-40], 400, "cut off"},
		"texts of 2 MB":        {"/v1/classify", "application/json", map[string]any{"model": "text", "texts": []string{strings.Repeat("a", 1<<20), strings.Repeat("a", 1<<20)}}, 413, "limit"},
	} {
		if a := s.do("POST", c.path, c.body, "Content-Type", c.contentType); a.status != c.status || !strings.Contains(string(a.body), c.words) {
			t.Errorf("%s: %v, want %d with %q", name, a, c.status, c.words)
		}
	}
	s.do("POST", "/v1/classify?model=px", red, "Content-Type", "image/png").into(t, 200, nil)
}
