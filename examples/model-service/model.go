package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"net/http"
	"sort"
	"strings"
	"unicode"
)

// A model turns a text into numbers. These two are small enough to read: a
// linear classifier over words, and an embedding by the hashing trick.
type model interface {
	// predict is deterministic and safe for concurrent use.
	predict(text string) any
}

// maxText bounds what a model is given, in bytes.
const maxText = 16 << 10

// models by name.
var models = map[string]model{
	"sentiment": sentiment{bias: -0.1, weights: map[string]float64{
		"good": 1.4, "great": 1.9, "fast": 0.9, "love": 2.1, "works": 0.8,
		"bad": -1.5, "slow": -1.2, "broken": -1.9, "hate": -2.2, "late": -0.9,
	}},
	"embed": embedding{dimensions: 16},
}

type sentiment struct {
	bias    float64
	weights map[string]float64
}

func (s sentiment) predict(text string) any {
	sum := s.bias
	for _, word := range words(text) {
		sum += s.weights[word]
	}
	positive := 1 / (1 + math.Exp(-sum))
	label := "negative"
	if positive >= 0.5 {
		label = "positive"
	}
	return map[string]any{"label": label, "score": math.Round(positive*1e4) / 1e4}
}

type embedding struct{ dimensions int }

func (e embedding) predict(text string) any {
	vector := make([]float64, e.dimensions)
	for _, word := range words(text) {
		h := fnv.New32a()
		io.WriteString(h, word)
		sum := h.Sum32()
		sign := 1.0
		if sum&1 == 1 {
			sign = -1
		}
		vector[int(sum>>1)%e.dimensions] += sign
	}
	norm := 0.0
	for _, x := range vector {
		norm += x * x
	}
	for i := range vector {
		if norm > 0 {
			vector[i] = math.Round(vector[i]/math.Sqrt(norm)*1e4) / 1e4
		}
	}
	return map[string]any{"embedding": vector}
}

func words(text string) []string {
	return strings.FieldsFunc(strings.ToLower(text), func(r rune) bool { return !unicode.IsLetter(r) })
}

// predict serves POST /v1/models/{name}:predict with {"text": "..."}.
func predict(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutSuffix(r.PathValue("call"), ":predict")
	m := models[name]
	if !ok || m == nil {
		http.Error(w, fmt.Sprintf("there is no model %q; GET /v1/models lists them", name), http.StatusNotFound)
		return
	}
	var question struct {
		Text string `json:"text"`
	}
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, 2*maxText))
	body.DisallowUnknownFields()
	if err := body.Decode(&question); err != nil {
		status := http.StatusBadRequest
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, `the body must be {"text": "..."}: `+err.Error(), status)
		return
	}
	if len(question.Text) > maxText {
		http.Error(w, fmt.Sprintf("the text has %d bytes, at most %d are read", len(question.Text), maxText), http.StatusRequestEntityTooLarge)
		return
	}
	answer(w, m.predict(question.Text))
}

// list serves GET /v1/models.
func list(w http.ResponseWriter, _ *http.Request) {
	names := make([]string, 0, len(models))
	for name := range models {
		names = append(names, name)
	}
	sort.Strings(names)
	answer(w, map[string]any{"models": names})
}

func answer(w http.ResponseWriter, what any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(what) // a client that has gone does not matter
}
