package vision

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// ConfigFile is the name of the preprocessing settings beside a model, in the
// form that Hugging Face transformers writes.
const ConfigFile = "preprocessor_config.json"

// maxConfigBytes bounds that file.
const maxConfigBytes = 1 << 20

// Config says how an image becomes the model's input.
type Config struct {
	// Resize: to Width x Height, or, where ShortestEdge is set, so that the
	// shorter side has ShortestEdge pixels. All zero: no resizing.
	Width, Height, ShortestEdge int
	Resample                    Filter
	// CropWidth and CropHeight are cut from the middle; zero: no crop.
	CropWidth, CropHeight int
	// Rescale multiplies the values 0..255; 0 leaves them.
	Rescale float64
	// Mean and Std normalise each channel afterwards: (x - mean) / std. Nil: no
	// normalisation. One value stands for all channels.
	Mean, Std []float64
}

// defaultConfig is used without a preprocessor_config.json: the whole image at
// the model's size, bilinear, values from -1 to 1.
func defaultConfig(w, h int) Config {
	return Config{Width: w, Height: h, Resample: Bilinear, Rescale: 1.0 / 255, Mean: []float64{0.5}, Std: []float64{0.5}}
}

type configJSON struct {
	ProcessorType string          `json:"image_processor_type"`
	ExtractorType string          `json:"feature_extractor_type"`
	DoResize      *bool           `json:"do_resize"`
	Size          json.RawMessage `json:"size"`
	Resample      *int            `json:"resample"`
	DoCrop        *bool           `json:"do_center_crop"`
	CropSize      json.RawMessage `json:"crop_size"`
	CropPct       *float64        `json:"crop_pct"`
	DoRescale     *bool           `json:"do_rescale"`
	RescaleFactor *float64        `json:"rescale_factor"`
	DoNormalize   *bool           `json:"do_normalize"`
	Mean          []float64       `json:"image_mean"`
	Std           []float64       `json:"image_std"`
	DoPad         *bool           `json:"do_pad"`
}

// readConfig reads ConfigFile in dir; false when there is none.
func readConfig(dir string) (Config, bool, error) {
	if dir == "" {
		return Config{}, false, nil
	}
	f, err := os.Open(filepath.Join(dir, ConfigFile))
	if errors.Is(err, os.ErrNotExist) {
		return Config{}, false, nil
	} else if err != nil {
		return Config{}, false, fmt.Errorf("%w: %s cannot be opened", ErrConfig, ConfigFile)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil || len(b) > maxConfigBytes {
		return Config{}, false, fmt.Errorf("%w: %s cannot be read or has more than %d bytes", ErrConfig, ConfigFile, maxConfigBytes)
	}
	c, err := ParseConfig(b)
	return c, err == nil, err
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", ErrConfig, ConfigFile, fmt.Sprintf(format, args...))
}

// squareSizes are the processors that take a plain number in "size" as both
// sides; all others take it as the shorter side when they crop afterwards.
var squareSizes = []string{"ViT", "DeiT", "Beit", "Siglip", "EfficientNet", "Segformer", "DPT", "GLPN", "Swin2SR"}

// ParseConfig reads a preprocessor_config.json as the processors of ViT, CLIP,
// ConvNext (also ResNet's) and their like understand it. What is not
// understood is refused by name.
func ParseConfig(b []byte) (Config, error) {
	var j configJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return Config{}, bad("%v", err)
	}
	typ := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(j.ProcessorType, "Fast"), "ImageProcessor"), "FeatureExtractor")
	if typ == "" {
		typ = strings.TrimSuffix(j.ExtractorType, "FeatureExtractor")
	}
	on := func(b *bool, d bool) bool {
		if b == nil {
			return d
		}
		return *b
	}
	if on(j.DoPad, false) {
		return Config{}, bad("do_pad is not implemented; set it to false")
	}
	c := Config{Resample: Bilinear}
	if typ == "CLIP" {
		c.Resample = Bicubic
	}
	if j.Resample != nil {
		c.Resample = Filter(*j.Resample)
		if c.Resample < Nearest || c.Resample > Hamming {
			return Config{}, bad("resample is %d, expected 0 to 5", *j.Resample)
		}
	}
	crop := on(j.DoCrop, len(j.CropSize) > 0 && j.DoCrop == nil && typ == "CLIP")
	if on(j.DoResize, len(j.Size) > 0) {
		square := !crop
		for _, s := range squareSizes {
			square = square || strings.HasPrefix(typ, s)
		}
		w, h, edge, err := parseSize("size", j.Size, square && typ != "ConvNext")
		if err != nil {
			return Config{}, err
		}
		c.Width, c.Height, c.ShortestEdge = w, h, edge
	}
	switch {
	case typ == "ConvNext" && c.ShortestEdge > 0:
		if err := c.convNext(j.CropPct); err != nil {
			return Config{}, err
		}
	case j.CropPct != nil:
		return Config{}, bad("crop_pct is not implemented for %q; give size and crop_size", typ)
	case crop:
		w, h, _, err := parseSize("crop_size", j.CropSize, true)
		if err != nil {
			return Config{}, err
		}
		c.CropWidth, c.CropHeight = w, h
	}
	if on(j.DoRescale, true) {
		c.Rescale = 1.0 / 255
		if j.RescaleFactor != nil {
			c.Rescale = *j.RescaleFactor
		}
		if !(c.Rescale > 0) || math.IsInf(c.Rescale, 0) {
			return Config{}, bad("rescale_factor is %v, expected a positive number", c.Rescale)
		}
	}
	if on(j.DoNormalize, len(j.Mean) > 0) {
		c.Mean, c.Std = j.Mean, j.Std
		if err := c.checkNorm(); err != nil {
			return Config{}, err
		}
	}
	return c, nil
}

func (c *Config) checkNorm() error {
	if n := len(c.Mean); (n != 1 && n != 3) || len(c.Std) != n {
		return bad("image_mean has %d values and image_std %d, expected 3 (or 1) each", len(c.Mean), len(c.Std))
	}
	for i := range c.Mean {
		if math.IsNaN(c.Mean[i]) || math.IsInf(c.Mean[i], 0) || !(math.Abs(c.Std[i]) > 0) || math.IsInf(c.Std[i], 0) {
			return bad("image_mean %v, image_std %v: expected finite numbers and no 0 in image_std", c.Mean, c.Std)
		}
	}
	return nil
}

// convNextEdge is the size from which ConvNext's processor no longer crops.
const convNextEdge = 384

func (c *Config) convNext(pct *float64) error {
	edge := c.ShortestEdge
	if edge >= convNextEdge {
		c.Width, c.Height, c.ShortestEdge = edge, edge, 0
		return nil
	}
	p := 224.0 / 256
	if pct != nil {
		p = *pct
	}
	if !(p > 0.01) || p > 1 {
		return bad("crop_pct is %v, expected 0.01 to 1", p)
	}
	c.ShortestEdge = int(float64(edge) / p)
	c.CropWidth, c.CropHeight = edge, edge
	return nil
}

// parseSize reads a number, {"height", "width"} or {"shortest_edge"}.
func parseSize(name string, raw json.RawMessage, square bool) (w, h, edge int, err error) {
	var n float64
	var m map[string]float64
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return 0, 0, 0, bad("%s is missing", name)
	case json.Unmarshal(raw, &n) == nil:
		if square {
			m = map[string]float64{"height": n, "width": n}
		} else {
			m = map[string]float64{"shortest_edge": n}
		}
	default:
		var pair []float64
		if json.Unmarshal(raw, &pair) == nil && len(pair) == 2 { // (height, width), old files
			m = map[string]float64{"height": pair[0], "width": pair[1]}
		} else if json.Unmarshal(raw, &m) != nil {
			return 0, 0, 0, bad("%s is %.40s, expected a number, {height, width} or {shortest_edge}", name, raw)
		}
	}
	for k, v := range m {
		if v != math.Trunc(v) || v < 1 || v > MaxSide {
			return 0, 0, 0, bad("%s: %.40s is %v, expected 1 to %d", name, k, v, MaxSide)
		}
	}
	switch {
	case len(m) == 2 && m["height"] > 0 && m["width"] > 0:
		return int(m["width"]), int(m["height"]), 0, nil
	case len(m) == 1 && m["shortest_edge"] > 0:
		if name == "crop_size" {
			e := int(m["shortest_edge"])
			return e, e, 0, nil
		}
		return 0, 0, int(m["shortest_edge"]), nil
	}
	return 0, 0, 0, bad("%s is %.60s, expected a number, {height, width} or {shortest_edge}", name, raw)
}
