// Command featurestore keeps running features for each entity: count, mean
// and largest amount. Plain HTTP; it knows nothing of TLS.
//
//	POST /v1/events             {"entity": "user-7", "amount": 12.5}
//	GET  /v1/features?entity=user-7
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"net/http"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

type event struct {
	Entity string  `json:"entity"`
	Amount float64 `json:"amount"`
}

type features struct {
	Count float64 `json:"count"`
	Mean  float64 `json:"mean"`
	Max   float64 `json:"max"`
}

type store struct {
	mu       sync.Mutex // guards entities
	entities map[string]features
}

// maxEntities bounds memory, whatever is sent.
const maxEntities = 100_000

func (s *store) add(e event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, known := s.entities[e.Entity]
	if !known && len(s.entities) >= maxEntities {
		return false
	}
	f.Mean = (f.Mean*f.Count + e.Amount) / (f.Count + 1)
	f.Count++
	f.Max = max(f.Max, e.Amount)
	s.entities[e.Entity] = f
	return true
}

func (s *store) get(entity string) features {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entities[entity]
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method + " " + r.URL.Path {
	case "POST /v1/events":
		var e event
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&e); err != nil || e.Entity == "" {
			http.Error(w, `send {"entity": NAME, "amount": NUMBER}`, http.StatusBadRequest)
			return
		}
		if !s.add(e) {
			http.Error(w, "full", http.StatusInsufficientStorage)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	case "GET /v1/features":
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.get(r.URL.Query().Get("entity")))
	default:
		http.NotFound(w, r)
	}
}

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "address")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	server := &http.Server{Addr: *listen, Handler: &store{entities: map[string]features{}}, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = server.Shutdown(grace)
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}
