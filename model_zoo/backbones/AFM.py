from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import InnerProductInteraction, LogisticRegression
from torch import Tensor, nn

from .base import Backbone


class AFM(Backbone):
    """A factorization machine whose pairs of fields are weighted by attention.

    Xiao et al., "Attentional Factorization Machines: Learning the Weight of Feature Interactions via Attention
    Networks", IJCAI 2017, equations 5-6. `attention_dropout` drops attention weights (first rate) and the pooled
    vector (second); without `use_attention` it is a plain FM, and
    the attention's parameters stay in the state dict unused, as in FuxiCTR.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        attention_dropout: list[float] = [0, 0],
        attention_dim: int = 10,
        use_attention: bool = True,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if not isinstance(attention_dropout, list) or len(attention_dropout) != 2:
            raise ValueError(f"attention_dropout must be a list of two rates (got {attention_dropout!r})")
        self.use_attention = use_attention
        self.product_layer = InnerProductInteraction(feature_map.num_fields, output="elementwise_product")
        self.lr_layer = LogisticRegression(feature_map)
        self.attention = nn.Sequential(
            nn.Linear(self.embedding_dim, attention_dim),
            nn.ReLU(),
            nn.Linear(attention_dim, 1, bias=False),
            nn.Softmax(dim=1),
        )
        self.weight_p = nn.Linear(self.embedding_dim, 1, bias=False)
        self.dropout1, self.dropout2 = (nn.Dropout(rate) for rate in attention_dropout)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        products = self.product_layer(self.embedding_layer(X))  # [B, F (F - 1) / 2, D]
        if self.use_attention:
            weights = self.dropout1(self.attention(products))  # [B, F (F - 1) / 2, 1]
            pairs = self.weight_p(self.dropout2((weights * products).sum(dim=1)))
        else:
            pairs = products.sum(dim=(1, 2)).unsqueeze(-1)
        return {"y_pred": self.output_activation(self.lr_layer(X) + pairs)}
