package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/fewbit/fewbit/tools/drive"
)

// example is a request that the demonstration sends itself and shows as curl.
type example struct{ path, body string }

// The token ids are "[CLS] the striker scored twice in the final [SEP]" in the
// encoder's vocabulary.
var examples = []example{
	{"/v1/classify", `{"model":"news","text":"The striker scored twice in the final"}`},
	{"/v2/models/news/infer", `{"inputs":[` +
		`{"name":"input_ids","shape":[1,9],"datatype":"INT64","data":[101,1996,11854,3195,3807,1999,1996,2345,102]},` +
		`{"name":"attention_mask","shape":[1,9],"datatype":"INT64","data":[1,1,1,1,1,1,1,1,1]},` +
		`{"name":"token_type_ids","shape":[1,9],"datatype":"INT64","data":[0,0,0,0,0,0,0,0,0]}]}`},
}

// showRequests prints each example as a curl line with the answer it gets now.
func showRequests(ctx context.Context, api *drive.Client) error {
	fmt.Println("Try it:")
	for _, e := range examples {
		fmt.Printf("  curl -s %s%s -H 'Content-Type: application/json' -d '%s'\n", api.Base, e.path, e.body)
		var answer json.RawMessage
		if err := api.Do(ctx, http.MethodPost, e.path, "application/json", strings.NewReader(e.body), &answer); err != nil {
			return err
		}
		fmt.Printf("    -> %s\n", answer)
	}
	fmt.Println()
	return nil
}
