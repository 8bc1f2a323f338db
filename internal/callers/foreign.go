package callers

// Rows of services whose protos are not ours. Each is passed to New by the
// assembly that serves it.
var (
	// WorkloadAPI: SPIFFE Workload API section 5; any local process asks,
	// attestation decides what it gets.
	WorkloadAPI = Table{
		"/SpiffeWorkloadAPI/FetchX509SVID":    {Callers: []Class{Workload}},
		"/SpiffeWorkloadAPI/FetchX509Bundles": {Callers: []Class{Workload}},
		"/SpiffeWorkloadAPI/FetchJWTSVID":     {Callers: []Class{Workload}},
		"/SpiffeWorkloadAPI/FetchJWTBundles":  {Callers: []Class{Workload}},
		"/SpiffeWorkloadAPI/ValidateJWTSVID":  {Callers: []Class{Workload}},
		"/SpiffeWorkloadAPI/FetchWITSVID":     {Callers: []Class{Workload}},
		"/SpiffeWorkloadAPI/FetchWITBundles":  {Callers: []Class{Workload}},
	}
	// WorkloadExtensions: what the agent's socket offers beyond the Workload
	// API; the protos live in the SDK's module and carry no options. Attestation
	// decides here, too.
	WorkloadExtensions = Table{
		"/legation.workload.v1.Revocations/Watch":   {Callers: []Class{Workload}},
		"/legation.workload.v1.Tokens/FetchJWTSVID": {Callers: []Class{Workload}},
		"/legation.workload.v1.Policies/Watch":      {Callers: []Class{Workload}},
		"/legation.workload.v1.Objects/Get":         {Callers: []Class{Workload}},
		"/legation.workload.v1.Objects/Put":         {Callers: []Class{Workload}},
		"/legation.workload.v1.Objects/Delete":      {Callers: []Class{Workload}},
		"/legation.workload.v1.Objects/List":        {Callers: []Class{Workload}},
	}
	// SDS: Envoy's secrets.
	SDS = Table{
		"/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets":  {Callers: []Class{Workload}},
		"/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets": {Callers: []Class{Workload}},
		"/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets":  {Callers: []Class{Workload}},
	}
	// ADS: everything else an Envoy of a session subscribes to.
	ADS = Table{
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources": {Callers: []Class{Workload}},
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources":  {Callers: []Class{Workload}},
	}
	// ALS: an Envoy's access log, by which its connections are known.
	ALS = Table{
		"/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs": {Callers: []Class{Workload}},
	}
	// Health: gRPC health checking; says nothing but serving or not.
	Health = Table{
		"/grpc.health.v1.Health/Check": {Callers: Classes, Role: Viewer, Namespaced: true},
		"/grpc.health.v1.Health/List":  {Callers: Classes, Role: Viewer, Namespaced: true},
		"/grpc.health.v1.Health/Watch": {Callers: Classes, Role: Viewer, Namespaced: true},
	}
)
