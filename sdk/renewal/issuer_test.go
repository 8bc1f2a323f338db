package renewal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestWhatTheIssuerSaysAboutTryingAgain(t *testing.T) {
	for _, tt := range []struct {
		name    string
		err     error
		restart bool
		want    time.Duration
		same    bool // is it the same request
	}{
		{"a plain error is tried after the backoff, the same request", errors.New("connection refused"), false, time.Hour, true},
		{"retry-after that is longer than the backoff holds", RetryAfter(5*time.Hour, "rate limited"), false, 5 * time.Hour, true},
		{"retry-after survives a restart", RetryAfter(5*time.Hour, "rate limited"), true, 5 * time.Hour, true},
		{"retry-after that is shorter than the backoff changes nothing", RetryAfter(time.Minute, "busy"), false, time.Hour, true},
		{"a permanent refusal waits for the longest backoff, and is another request", Permanent("this name is not yours"), false, 32 * time.Hour, false},
		{"so it does after a restart", Permanent("this name is not yours"), true, 32 * time.Hour, false},
		{"wrapped errors count", fmt.Errorf("while ordering: %w", Permanent("refused")), false, 32 * time.Hour, false},
		{"no issuer may demand more than a week", RetryAfter(1000*day, "go away"), false, 7 * day, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil, certificate("a"))
				var at []time.Time
				var ids []string
				w.ca.fails = func(r *Request) error {
					at, ids = append(at, time.Now()), append(ids, r.ID)
					if len(at) == 1 {
						return tt.err
					}
					return nil
				}
				w.start()
				if tt.restart {
					sleep(time.Minute)
					w.stop()
					w.start()
				}
				sleep(8 * day)
				w.want("a", Ready, True, ReasonReady)
				if len(at) != 2 || at[1].Sub(at[0]).Round(time.Minute) != tt.want || (ids[0] == ids[1]) != tt.same {
					t.Errorf("asked at %v, requests %v; want the second after %s", at, ids, tt.want)
				}
				w.stop()
			})
		})
	}
}

func TestWhatAnIssuerMustNotReturn(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, ca *CA, r *Request, out *Issued) *Issued
		want  string
	}{
		{"nothing", func(*testing.T, *CA, *Request, *Issued) *Issued { return nil }, "returned no certificate"},
		{"what is no certificate", func(*testing.T, *CA, *Request, *Issued) *Issued { return &Issued{Chain: [][]byte{{1}}} }, "cannot be read"},
		{"a certificate for another key", func(t *testing.T, ca *CA, r *Request, out *Issued) *Issued {
			return &Issued{Chain: [][]byte{ca.Certificate.Raw}}
		}, "for another key than the request's"},
		{"a chain that does not hang together", func(t *testing.T, ca *CA, r *Request, out *Issued) *Issued {
			return &Issued{Chain: [][]byte{out.Chain[0], newCA(t, day).Certificate.Raw}}
		}, "not signed by the next"},
		{"one that has ended", func(t *testing.T, ca *CA, r *Request, _ *Issued) *Issued {
			late := &CA{Certificate: ca.Certificate, Key: ca.Key, Now: func() time.Time { return time.Now().Add(-91 * day) }}
			late.Certificate.NotBefore = time.Now().Add(-1000 * day)
			out, err := late.Issue(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}, "that ended at"},
		{"one of the far future", func(t *testing.T, ca *CA, r *Request, _ *Issued) *Issued {
			early := &CA{Certificate: ca.Certificate, Key: ca.Key, Now: func() time.Time { return time.Now().Add(2 * day) }}
			out, err := early.Issue(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}, "valid only from"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil, certificate("a"))
				ca := w.ca.Issuer.(*CA)
				w.sched.cfg.Issuers = Static(map[string]Issuer{"ca": issuerFunc(func(ctx context.Context, r *Request) (*Issued, error) {
					out, err := ca.Issue(ctx, r)
					if err != nil {
						return nil, err
					}
					return tt.spoil(t, ca, r, out), nil
				})})
				err := w.sched.RunOnce(t.Context())
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v; want %q", err, tt.want)
				}
				w.want("a", Issuing, False, ReasonFailed)
				w.want("a", Ready, False, ReasonDoesNotExist)
			})
		})
	}
}

type issuerFunc func(context.Context, *Request) (*Issued, error)

func (f issuerFunc) Issue(ctx context.Context, r *Request) (*Issued, error) { return f(ctx, r) }

// TestAnIssuerThatReturnsAShorterLifeCausesNoLoop: asked for 90 days, it
// gives what the row says.
func TestAnIssuerThatReturnsAShorterLifeCausesNoLoop(t *testing.T) {
	for _, tt := range []struct {
		name string
		life time.Duration
		over time.Duration
		most int
	}{
		{"a day: every 16 hours, a little less for the spread", day, 30 * day, 52},
		{"an hour: every 40 minutes", time.Hour, day, 42},
		{"a minute: every minute, for so much is between two", time.Minute, time.Hour, 61},
		{"ten seconds: every minute", 10 * time.Second, time.Hour, 61},
		{"two seconds: every minute", 2 * time.Second, time.Hour, 61},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := certificate("a", lives(90*day))
				c.Spec.RenewBefore = NewDuration(30 * day)
				w := newWorld(t, nil, c)
				ca := w.ca.Issuer.(*CA)
				w.sched.cfg.Issuers = Static(map[string]Issuer{"ca": issuerFunc(func(ctx context.Context, r *Request) (*Issued, error) {
					w.ca.lean(func(ca *watchful) { ca.asked++ })
					short := *r
					short.Duration = tt.life
					return ca.Issue(ctx, &short)
				})})
				w.start()
				sleep(tt.over)
				if w.ca.count("asked") > tt.most || w.ca.count("asked") < tt.most*7/10 {
					t.Errorf("the CA was asked %d times in %s; want %d at most, and not far less", w.ca.count("asked"), tt.over, tt.most)
				}
				w.stop()
			})
		})
	}
}

// TestTheCAsOwnEndCausesNoLoop: certificates get shorter and shorter, and
// then there is none.
func TestTheCAsOwnEndCausesNoLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, certificate("a"))
		w.ca.Issuer = newCA(t, 10*day)
		w.start()
		sleep(20 * day)
		if w.ca.count("asked") > 60 {
			t.Errorf("the CA was asked %d times", w.ca.count("asked"))
		}
		c := w.want("a", Ready, False, ReasonExpired)
		if m := c.Status.Condition(Issuing).Message; !strings.Contains(m, "ended at") {
			t.Errorf("the message is %q", m)
		}
		w.stop()
	})
}

func TestASecondSchedulerOnOneRegistryNeedsALabel(t *testing.T) {
	r := prometheus.NewRegistry()
	start := func(r prometheus.Registerer) error {
		store, err := NewMemory()
		if err != nil {
			t.Fatal(err)
		}
		_, err = New(Config{Store: store, Issuers: Static(nil), Registerer: r})
		return err
	}
	one, two := prometheus.WrapRegistererWith(prometheus.Labels{"scheduler": "one"}, r), prometheus.WrapRegistererWith(prometheus.Labels{"scheduler": "two"}, r)
	if err := errors.Join(start(one), start(two)); err != nil {
		t.Error(err)
	}
	if err := start(two); err == nil || !strings.Contains(err.Error(), "a label per Scheduler") {
		t.Errorf("without: %v", err)
	}
}
