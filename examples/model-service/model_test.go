package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestWhatTheServiceAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		want               string
	}{
		"a good review is positive":        {"POST", "/v1/models/sentiment:predict", `{"text": "Works great, I love it"}`, 200, `"positive"`},
		"a bad one is not":                 {"POST", "/v1/models/sentiment:predict", `{"text": "broken and late"}`, 200, `"negative"`},
		"an embedding has a length of one": {"POST", "/v1/models/embed:predict", `{"text": "word"}`, 200, `1`},
		"no words embed to zeros":          {"POST", "/v1/models/embed:predict", `{"text": ""}`, 200, `[0,0,0`},
		"a model that is not there":        {"POST", "/v1/models/gpt:predict", `{"text": ""}`, 404, `GET /v1/models`},
		"a call that is not predict":       {"POST", "/v1/models/embed:train", `{"text": ""}`, 404, `GET /v1/models`},
		"a field that nobody knows":        {"POST", "/v1/models/embed:predict", `{"txt": ""}`, 400, `unknown field`},
		"a text that is too long":          {"POST", "/v1/models/embed:predict", `{"text": "` + strings.Repeat("a", maxText+1) + `"}`, 413, `bytes`},
		"a body that is too long":          {"POST", "/v1/models/embed:predict", `{"text": "` + strings.Repeat("a", 3*maxText) + `"}`, 413, `large`},
		"the list":                         {"GET", "/v1/models", "", 200, `["embed","sentiment"]`},
		"health":                           {"GET", "/healthz", "", 200, "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			handler().ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
			if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
				t.Errorf("%d %s, want %d with %q", w.Code, w.Body, c.status, c.want)
			}
		})
	}
}

func TestEverybodySeesNoModelAnswer(t *testing.T) {
	w := httptest.NewRecorder()
	public().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/models/embed:predict", strings.NewReader(`{"text": "a"}`)))
	if w.Code == http.StatusOK {
		t.Error("the public port predicts")
	}
}

func TestFlagsThatAreRefused(t *testing.T) {
	for want, args := range map[string][]string{
		"no flag":                       {"serve"},
		"must be require or prefer":     {"-revocation", "off"},
		"-acme-ca":                      {"-acme-ca", "/nonexistent"},
		"flag provided but not defined": {"-lisen", ":1"},
	} {
		if _, err := configure(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}
