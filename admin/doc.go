// Package admin is the HTTP side of a node: health for load balancers, metrics for Prometheus.
//
// Everything is in one route table (routes.go) with the right that each row requires; what is not in the table does
// not exist. This version only reads: no route changes anything, and the server takes no request body.
package admin
