//! The API at a shared endpoint: calls come one by one, each with who has sent it.

use crate::{AppContext, Runtime, truth};
use http::{Request, Response};
use std::sync::Arc;
use tower_service::Service;
use weft_flows::Party;
use weft_l7::Body;

impl Runtime {
    /// Answers one call of the gRPC API at a shared endpoint of this node, whose app is `app`. `from` has sent
    /// it, and policy has let it pass.
    pub async fn answer_grpc(
        self: &Arc<Self>,
        app: &Arc<AppContext>,
        from: &Party,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let arrived = truth::arrive(request.headers_mut(), from);
        request.extensions_mut().insert(arrived);
        request.headers_mut().remove(truth::API_TOKEN);
        match self.grpc(app, None).call(request).await {
            Ok(response) => response.map(Body::made),
            Err(never) => match never {},
        }
    }
}
